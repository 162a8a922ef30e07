//! A way to the service on which everything is seen.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{Service, visitor::Port};

/// Passes on what browsers and the service say to each other, and keeps it.
pub struct Front {
    port: u16,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

/// The heads of a request and of its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub request: String,
    pub answer: String,
}

impl Port for Front {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Front {
    pub async fn start(service: &Service) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let front = Self {
            port: listener.local_addr().unwrap().port(),
            exchanges: Arc::default(),
        };
        let (port, exchanges) = (service.port, front.exchanges.clone());
        tokio::spawn(async move {
            while let Ok((browser, _)) = listener.accept().await {
                let exchanges = exchanges.clone();
                tokio::spawn(async move {
                    let service = TcpStream::connect(("127.0.0.1", port)).await?;
                    pass_on(browser, service, &exchanges).await
                });
            }
        });
        front
    }

    /// All that was asked so far and has an answer.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap().clone()
    }

    /// How often this was asked for.
    pub fn asked(&self, path: &str) -> u64 {
        let exchanges = self.exchanges();
        let asked = exchanges.iter().filter(|exchange| exchange.path() == path);
        asked.count() as u64
    }
}

impl Exchange {
    pub fn path(&self) -> &str {
        self.request.split(' ').nth(1).unwrap()
    }

    pub fn status(&self) -> &str {
        self.answer.split(' ').nth(1).unwrap()
    }

    /// A header of the request.
    pub fn asks(&self, name: &str) -> Option<&str> {
        header(&self.request, name)
    }

    /// A header of the answer.
    pub fn answers(&self, name: &str) -> Option<&str> {
        header(&self.answer, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find_map(|(header, value)| header.eq_ignore_ascii_case(name).then_some(value))
}

/// One exchange after the other, as browsers do on a connection.
async fn pass_on(
    browser: TcpStream,
    service: TcpStream,
    exchanges: &Mutex<Vec<Exchange>>,
) -> io::Result<()> {
    let (mut browser, mut service) = (BufReader::new(browser), BufReader::new(service));
    loop {
        let request = read_head(&mut browser).await?;
        service.write_all(request.as_bytes()).await?;
        let answer = read_head(&mut service).await?;
        let length = header(&answer, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut bytes = answer.clone().into_bytes();
        let body = bytes.len();
        bytes.resize(body + length, 0);
        service.read_exact(&mut bytes[body..]).await?;
        // Seen before it is shown.
        let exchange = Exchange { request, answer };
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
