//! The states of pages: with them, a page that takes an `AtomicSession` or a `ViewCount` compiles only on a route that
//! provides it.

/// The state of pages whose views are counted. Only [`counted`](super::app::counted) makes it.
#[derive(Clone, Copy, Debug)]
pub struct Counted(pub(super) ());

/// The state of pages that have a session and are not counted. Only [`with_session`](super::app::with_session) makes
/// it.
#[derive(Clone, Copy, Debug)]
pub struct Uncounted(pub(super) ());

/// The states of pages that have a session.
pub trait HasSession: Send + Sync {}

impl HasSession for Counted {}
impl HasSession for Uncounted {}
