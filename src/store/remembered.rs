//! What an instance remembers of sessions: the values that it wrote or read last. It saves reading them before the next
//! write.

use std::mem;

use foldhash::HashMap;
use fred::bytes::Bytes;
use tower_sessions::session::Id;

/// The most bytes that remembered values take, in both generations together: some 40,000 sessions of three pages. A
/// visitor who comes back after so many others costs one more command.
const MAX_REMEMBERED_BYTES: usize = 8_000_000;

/// What a value takes beside its bytes: its place in a hash table that is half full, and two allocations.
const OVERHEAD: usize = 130;

/// The bounds of trust: narrow, so that a few views change it.
const MOST_TRUST: i8 = 4;
const LEAST_TRUST: i8 = -2;

/// Values by session. Forgetting one is harmless.
///
/// Each view takes one out and puts one in, under a lock that all threads share. So it is two hash tables, and no cache
/// such as moka, which would keep an order of all values.
///
/// New values go to the younger of two generations. When that has grown to half of [`MAX_REMEMBERED_BYTES`], it becomes
/// the older one, and what was the older one is forgotten.
#[derive(Debug, Default)]
pub struct Remembered {
    young: HashMap<Id, Bytes>,
    old: HashMap<Id, Bytes>,
    /// Of the younger generation.
    bytes: usize,
    /// How often a remembered value was right lately, less twice how often it was wrong. A wrong value costs up to
    /// three commands more than a right one; reading first costs one more.
    trust: i8,
}

impl Remembered {
    /// Remembers the value of a session.
    pub fn put(&mut self, id: Id, value: Bytes) {
        self.bytes += value.len() + OVERHEAD;
        if self.bytes > MAX_REMEMBERED_BYTES / 2 {
            self.bytes = value.len() + OVERHEAD;
            self.old = mem::take(&mut self.young);
        }
        if let Some(before) = self.young.insert(id, value) {
            self.bytes -= before.len() + OVERHEAD;
        }
    }

    /// Takes the value of a session out.
    pub fn take(&mut self, id: &Id) -> Option<Bytes> {
        let old = self.old.remove(id);
        let young = self.young.remove(id).inspect(|value| self.bytes -= value.len() + OVERHEAD);
        young.or(old)
    }

    /// Whether remembered values are used: they were wrong less than about one time in three lately. Other instances may
    /// have written the sessions since.
    pub fn is_trusted(&self) -> bool {
        self.trust >= 0
    }

    /// Learns whether a remembered value was right.
    pub fn learn(&mut self, was_right: bool) {
        let change = if was_right { 1 } else { -2 };
        self.trust = (self.trust + change).clamp(LEAST_TRUST, MOST_TRUST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(size: usize) -> Bytes {
        vec![0; size].into()
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        for size in [0, 100, 60_000] {
            for id in 0..100_000 {
                remembered.put(Id(id), value(size));
                let values = remembered.young.values().chain(remembered.old.values());
                if id % 1000 == 0 {
                    let bytes: usize = values.map(|value| value.len() + OVERHEAD).sum();
                    assert!(bytes <= MAX_REMEMBERED_BYTES, "{bytes} bytes of values of {size}");
                }
            }
            assert_eq!(remembered.take(&Id(99_999)), Some(value(size)));
            assert_eq!(remembered.take(&Id(99_999)), None);
        }
    }

    #[test]
    fn the_newest_value_counts() {
        let mut remembered = Remembered::default();
        let half = MAX_REMEMBERED_BYTES / 2 - 2 * OVERHEAD;
        remembered.put(Id(1), value(1));
        remembered.put(Id(2), value(half));
        remembered.put(Id(1), value(2));
        assert_eq!(remembered.take(&Id(1)), Some(value(2)));
        assert_eq!(remembered.take(&Id(2)), Some(value(half)));
    }

    #[test]
    fn a_value_that_is_replaced_or_taken_out_takes_no_room() {
        let mut remembered = Remembered::default();
        remembered.put(Id(1), value(100));
        for _ in 0..100_000 {
            remembered.put(Id(2), value(100));
            remembered.put(Id(2), value(100));
            remembered.take(&Id(2));
        }
        assert_eq!(remembered.take(&Id(1)), Some(value(100)));
    }

    #[test]
    fn trust_follows_what_was_right() {
        let mut remembered = Remembered::default();
        let mut after = |was_right: &[bool]| {
            was_right.iter().for_each(|was_right| remembered.learn(*was_right));
            remembered.is_trusted()
        };
        assert!(after(&[]));
        assert!(!after(&[false]));
        assert!(!after(&[true]));
        assert!(after(&[true]));
        assert!(after(&[true; 100]));
        assert!(!after(&[false; 3]));
        assert!(!after(&[false; 100]));
        assert!(after(&[true; 2]));
    }
}
