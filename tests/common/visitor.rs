//! Visitors: HTTP clients with a cookie.

use std::net::TcpStream;

use reqwest::{
    Client, ClientBuilder, Method,
    header::{ACCEPT, COOKIE, HeaderMap, SET_COOKIE},
};

use super::{Redis, Service, TIMEOUT};

/// A server on a port of this machine.
pub trait Port {
    fn port(&self) -> u16;
}

impl Port for Service {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Port for Redis {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Port for u16 {
    fn port(&self) -> u16 {
        *self
    }
}

/// Opens a connection. What is read from it or written to it fails if nothing moves for longer than the service waits for
/// any client.
pub fn connect(server: &impl Port) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(2 * TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(2 * TIMEOUT)).unwrap();
    stream
}

/// An HTTP client that keeps the session's cookie.
#[derive(Clone)]
pub struct Visitor {
    client: Client,
    /// `name=value` of the session cookie.
    pub cookie: Option<String>,
    /// Additional headers of each request.
    pub headers: HeaderMap,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Visitor {
    pub fn new() -> Self {
        Self::with(Client::builder())
    }

    /// A visitor that uses HTTP/2 with prior knowledge.
    pub fn with_http2() -> Self {
        Self::with(Client::builder().http2_prior_knowledge())
    }

    fn with(client: ClientBuilder) -> Self {
        Self { client: client.timeout(TIMEOUT).build().unwrap(), cookie: None, headers: HeaderMap::new() }
    }

    /// A new visitor that shares the connection pool of another.
    pub fn sharing_connections(other: &Self) -> Self {
        Self { cookie: None, ..other.clone() }
    }

    pub fn with_cookie(cookie: impl Into<String>) -> Self {
        Self { cookie: Some(cookie.into()), ..Self::new() }
    }

    /// Sends a `GET` as curl does.
    pub async fn view(&mut self, service: &impl Port, path: &str) -> Answer {
        self.request(Method::GET, service, path, "*/*").await
    }

    /// Views a page and returns the number on it.
    pub async fn count(&mut self, service: &impl Port, path: &str) -> u64 {
        self.view(service, path).await.count()
    }

    pub async fn request(&mut self, method: Method, service: &impl Port, path: &str, accept: &str) -> Answer {
        let mut request = self
            .client
            .request(method, format!("http://127.0.0.1:{}{path}", service.port()))
            .headers(self.headers.clone())
            .header(ACCEPT, accept);
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        let response = request.send().await.unwrap();
        let answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        };
        if let Some(cookie) = answer.cookie() {
            self.cookie = Some(cookie);
        }
        answer
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The number in the sentence, in plain text or HTML.
    pub fn count(&self) -> u64 {
        assert_eq!(self.status, 200, "{self:?}");
        number(&self.body).unwrap_or_else(|| panic!("no sentence: {self:?}"))
    }

    /// `name=value` of the cookie that the response sets.
    pub fn cookie(&self) -> Option<String> {
        let cookie = self.headers.get(SET_COOKIE)?.to_str().unwrap();
        Some(cookie.split(';').next().unwrap().to_owned())
    }
}

/// The number in the sentence, if the text has it.
pub fn number(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("you viewed this page ")?;
    let (number, _) = rest.split_once(" times")?;
    Some(number.parse().unwrap())
}

/// The session id in a cookie: its last 22 characters. A signed cookie begins with the signature.
pub fn session_id(cookie: &str) -> String {
    let value = cookie.split_once('=').unwrap().1;
    value[value.len() - 22..].to_owned()
}
