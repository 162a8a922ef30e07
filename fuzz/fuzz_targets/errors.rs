//! Error texts of Redis and of fred: arguments of a command, which may be secret, are not repeated.

#![no_main]

use cloud_run_sessions::store::Error;
use fred::error::ErrorKind;
use libfuzzer_sys::fuzz_target;

const ARGUMENTS: &str = ", with args";

fuzz_target!(|text: &str| {
    let error = Error::from(fred::error::Error::new(ErrorKind::Unknown, text.to_owned()));
    let shown = error.to_string();
    assert!(!shown.contains(ARGUMENTS), "{shown}");
    // A refusal is shown in Redis's words; of the text of any other error, nothing is shown.
    match error {
        Error::Refused(reason) => {
            let before = text.split(ARGUMENTS).next().unwrap();
            assert!(before.contains(&reason) && reason.starts_with(|char: char| char.is_ascii_uppercase()), "{reason}")
        }
        Error::Unreached | Error::Unanswered => {}
        other => panic!("{other:?}"),
    }
});
