//! A recording proxy in front of the service.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{Service, visitor::Port};

/// Forwards requests and responses, and records their heads.
pub struct Front {
    port: u16,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

/// The heads of a request and of its response.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub request: String,
    pub response: String,
}

impl Port for Front {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Front {
    pub async fn start(service: &Service) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let front = Self { port: listener.local_addr().unwrap().port(), exchanges: Arc::default() };
        let (port, exchanges) = (service.port, front.exchanges.clone());
        tokio::spawn(async move {
            while let Ok((browser, _)) = listener.accept().await {
                let exchanges = exchanges.clone();
                tokio::spawn(async move {
                    let service = TcpStream::connect(("127.0.0.1", port)).await?;
                    forward(browser, service, &exchanges).await
                });
            }
        });
        front
    }

    /// All exchanges so far, in the order of their responses.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap().clone()
    }

    /// The number of requests for this path so far.
    pub fn requests_for(&self, path: &str) -> u64 {
        let exchanges = self.exchanges();
        let requests = exchanges.iter().filter(|exchange| exchange.path() == path);
        requests.count() as u64
    }
}

impl Exchange {
    pub fn path(&self) -> &str {
        self.request.split(' ').nth(1).unwrap()
    }

    pub fn status(&self) -> &str {
        self.response.split(' ').nth(1).unwrap()
    }

    pub fn request_header(&self, name: &str) -> Option<&str> {
        header(&self.request, name)
    }

    pub fn response_header(&self, name: &str) -> Option<&str> {
        header(&self.response, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find_map(|(header, value)| header.eq_ignore_ascii_case(name).then_some(value))
}

/// Forwards one exchange after the other: browsers do not pipeline.
async fn forward(browser: TcpStream, service: TcpStream, exchanges: &Mutex<Vec<Exchange>>) -> io::Result<()> {
    let (mut browser, mut service) = (BufReader::new(browser), BufReader::new(service));
    loop {
        let request = read_head(&mut browser).await?;
        service.write_all(request.as_bytes()).await?;
        let response = read_head(&mut service).await?;
        let length = header(&response, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut bytes = response.clone().into_bytes();
        let body = bytes.len();
        bytes.resize(body + length, 0);
        service.read_exact(&mut bytes[body..]).await?;
        // Recorded first, so that tests see every exchange that the browser has seen.
        let exchange = Exchange { request, response };
        exchanges.lock().unwrap().push(exchange);
        browser.write_all(&bytes).await?;
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}
