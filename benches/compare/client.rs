//! A connection to a program, and the visitors who view its pages.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

/// A persistent connection.
pub struct Connection(BufReader<TcpStream>);

/// A response with status 200.
pub struct Answer {
    body: String,
    /// The cookie that it sets.
    cookie: Option<String>,
}

impl Connection {
    /// Connects to a port of this machine. Returns `None` if nothing listens there.
    pub fn try_to(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// Connects to a port of this machine.
    pub fn to(port: u16) -> Self {
        Self::try_to(port).unwrap_or_else(|| panic!("cannot connect to port {port}"))
    }

    /// Requests a page. Returns `None` unless the status is 200.
    pub fn get(&mut self, path: &str, cookie: Option<&str>) -> Option<Answer> {
        let cookie = cookie.map(|cookie| format!("cookie: {cookie}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{cookie}\r\n");
        let Self(stream) = self;
        stream.get_mut().write_all(request.as_bytes()).ok()?;
        let (mut length, mut cookie, mut head) = (0, None, String::new());
        stream.read_line(&mut head).ok()?;
        if !head.contains(" 200 ") {
            return None;
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "set-cookie" => cookie = value.split(';').next().map(str::to_owned),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).ok()?;
        Some(Answer { body, cookie })
    }
}

impl Answer {
    /// The number in the sentence, which is its last word but one.
    pub fn number(&self) -> u64 {
        let number = self.body.split(' ').rev().nth(1);
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {}", self.body))
    }
}

/// A visitor, who keeps the cookie that was set last.
#[derive(Default)]
pub struct Visitor {
    pub cookie: Option<String>,
}

impl Visitor {
    /// Views a page.
    pub fn view(&mut self, connection: &mut Connection, path: &str) -> Answer {
        let answer = connection.get(path, self.cookie.as_deref());
        let answer = answer.unwrap_or_else(|| panic!("no answer to {path}"));
        if answer.cookie.is_some() {
            self.cookie.clone_from(&answer.cookie);
        }
        answer
    }
}
