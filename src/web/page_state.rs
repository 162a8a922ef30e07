//! The states of pages, by which the compiler knows whether a page has a session, and whether its views are counted.

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
