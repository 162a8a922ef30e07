//! The form of a response: HTML only for clients that name it, whether they say so in one header line or in several.

#![no_main]

use axum::http::{HeaderMap, HeaderValue, header::ACCEPT};
use cloud_run_sessions::web::format::Format;
use libfuzzer_sys::fuzz_target;

fn format_of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Format> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(ACCEPT, HeaderValue::from_bytes(line).ok()?);
    }
    Some(Format::of(&headers))
}

fuzz_target!(|input: &[u8]| {
    let Some(format) = format_of(input.split(|byte| *byte == b'\n')) else { return };
    let line = input.to_ascii_lowercase();
    if format == Format::Html {
        assert!(line.windows(9).any(|part| part == b"text/html"));
    }
    // Several lines are one list, if each can be read.
    if input.is_ascii() {
        let joined: Vec<u8> = input.iter().map(|byte| if *byte == b'\n' { b',' } else { *byte }).collect();
        assert_eq!(format_of([&joined[..]]), Some(format));
    }
});
