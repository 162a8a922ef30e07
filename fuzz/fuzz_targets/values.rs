//! Values in Redis: what is decoded is kept when it is encoded again, and tower-sessions-redis-store reads the same.

#![no_main]

use cloud_run_sessions::store::contents::{Contents, KEY, WriteId};
use libfuzzer_sys::fuzz_target;
use time::OffsetDateTime;
use tower_sessions::session::{Id, Record};

fuzz_target!(|value: &[u8]| {
    // The id that the value names, if it is long enough.
    let id = value.get(3..19).map_or(Id(0), |id| Id(i128::from_be_bytes(id.try_into().unwrap())));
    assert!(Contents::decode(&Id(!id.0), value).is_err(), "another visitor's value");
    let Ok(mut contents) = Contents::decode(&id, value) else { return };
    let (data, is_ended) = (contents.data(), contents.is_ended);
    let version = contents.version();
    let counted = contents.count("/");
    contents.record_write(WriteId { instance: 1, number: 2 });
    let Ok(encoded) = contents.encode(&id, OffsetDateTime::UNIX_EPOCH) else { panic!("{contents:?}") };
    let again = Contents::decode(&id, &encoded).expect("our own value");
    assert_eq!(again.is_ended, is_ended);
    assert_eq!(again.begun, contents.begun.filter(|_| !is_ended));
    assert_eq!(again.version(), version.saturating_add(1));
    assert_eq!(again.data(), data);
    if let (Ok(count), false) = (counted, is_ended) {
        assert_eq!(again.clone().count("/"), Ok(count.saturating_add(1)));
    }
    if let Ok(data) = data {
        let mut record: Record = rmp_serde::from_slice(&encoded).expect("a record");
        assert!(record.data.remove(KEY).is_some());
        assert_eq!((record.id, record.data), (id, data));
    }
});
