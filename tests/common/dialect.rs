//! A proxy in front of Redis that speaks as another server does: with the compare-and-set of that server.

use std::{
    mem,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

use super::{Port, Redis};

/// What a server replies to `SET … IFEQ … GET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An error: it does not know `IFEQ`. The service then uses its script.
    Script,
    /// What the key held, whether the condition holds or not: Redis 8.4 and Valkey.
    IfEqual,
    /// What the key held, or null if the condition fails: Upstash, as it documents it.
    NullUnlessEqual,
}

impl Form {
    pub const ALL: [Self; 3] = [Self::Script, Self::IfEqual, Self::NullUnlessEqual];
}

/// The commands that use sessions, with their options that matter here.
const SESSION_COMMANDS: [&str; 6] = ["SET", "SET IFEQ", "GETEX", "EVAL", "EVALSHA", "DEL"];

/// A server of this form.
pub struct Dialect {
    port: u16,
    state: Arc<State>,
}

struct State {
    redis: u16,
    form: Form,
    /// Whether the server behind it has the form itself.
    is_native: bool,
    has_scripts: bool,
    seen: Mutex<Vec<&'static str>>,
}

impl Port for Dialect {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Dialect {
    pub async fn start(redis: &Redis, form: Form) -> Self {
        Self::start_with(redis, form, true).await
    }

    /// A server that forbids scripts.
    pub async fn start_without_scripts(redis: &Redis, form: Form) -> Self {
        Self::start_with(redis, form, false).await
    }

    async fn start_with(redis: &Redis, form: Form, has_scripts: bool) -> Self {
        let is_native = match form {
            Form::Script => !redis.has_ifeq(),
            Form::IfEqual => redis.has_ifeq(),
            Form::NullUnlessEqual => false,
        };
        let state = State { redis: redis.port, form, is_native, has_scripts, seen: Mutex::default() };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let dialect = Self { port: listener.local_addr().unwrap().port(), state: Arc::new(state) };
        let state = dialect.state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(translate(client, state.clone()));
            }
        });
        dialect
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The commands of sessions that came since the last call.
    pub fn commands(&self) -> Vec<&'static str> {
        mem::take(&mut self.state.seen.lock().unwrap())
    }
}

type Command = Vec<Vec<u8>>;

impl State {
    /// The command that makes the server behind it reply as this one does.
    fn translated(&self, command: Command) -> Command {
        let is_if_equal = command[0] == b"SET" && command.iter().any(|part| part == b"IFEQ");
        let name = if is_if_equal { b"SET IFEQ" } else { &command[0][..] };
        let name = SESSION_COMMANDS.into_iter().find(|known| known.as_bytes() == name);
        self.seen.lock().unwrap().extend(name);
        let eval = |script: &str, rest: &[&[u8]]| {
            let parts = [b"EVAL", script.as_bytes()].into_iter().chain(rest.iter().copied());
            parts.map(<[u8]>::to_vec).collect()
        };
        let is_script = matches!(name, Some("EVAL" | "EVALSHA"));
        if is_script && !self.has_scripts {
            return eval("return redis.error_reply('NOPERM this user has no permissions to run the command')", &[b"0"]);
        }
        if !is_if_equal || self.is_native {
            return command;
        }
        // SET key new PX ms IFEQ expected GET
        let [_, key, new, _, ms, _, expected, _] = &command[..] else { panic!("another SET: {command:?}") };
        match self.form {
            Form::Script => eval("return redis.error_reply('ERR syntax error')", &[b"0"]),
            Form::IfEqual | Form::NullUnlessEqual => eval(
                "local held = redis.call('GET', KEYS[1])
                 if held ~= ARGV[3] then return ARGV[4] == 'IfEqual' and held end
                 redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
                 return held",
                &[b"1", key, new, ms, expected, format!("{:?}", self.form).as_bytes()],
            ),
        }
    }
}

/// Forwards both directions until either side closes. Replies need no translation.
async fn translate(client: TcpStream, state: Arc<State>) {
    let Ok(redis) = TcpStream::connect(("127.0.0.1", state.redis)).await else { return };
    let (mut replies, mut to_redis) = redis.into_split();
    let (mut requests, mut to_client) = client.into_split();
    let requests = async {
        let (mut waiting, mut buffer) = (Vec::new(), [0; 65536]);
        while let Ok(read @ 1..) = requests.read(&mut buffer).await {
            waiting.extend_from_slice(&buffer[..read]);
            let mut rest = &waiting[..];
            let mut translated = Vec::new();
            while let Some((command, after)) = first_command(rest) {
                translated.extend(encoded(&state.translated(command)));
                rest = after;
            }
            waiting = rest.to_vec();
            if to_redis.write_all(&translated).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        _ = copy(&mut replies, &mut to_client) => {}
    }
}

/// The first command, and what comes after it; nothing if it is not complete.
fn first_command(bytes: &[u8]) -> Option<(Command, &[u8])> {
    let (parts, mut rest) = first_number(bytes)?;
    let mut command = Vec::new();
    for _ in 0..parts {
        let (length, after) = first_number(rest)?;
        command.push(after.get(..length)?.to_vec());
        rest = after.get(length + 2..)?;
    }
    Some((command, rest))
}

/// The number in a line such as `*3` or `$7`, and what comes after the line.
fn first_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.windows(2).position(|part| part == b"\r\n")?;
    let number = str::from_utf8(&bytes[1..end]).unwrap().parse().unwrap();
    Some((number, &bytes[end + 2..]))
}

fn encoded(command: &Command) -> Vec<u8> {
    let parts = command.iter().map(|part| [format!("${}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
    [format!("*{}\r\n", command.len()).into_bytes()].into_iter().chain(parts).collect::<Vec<_>>().concat()
}
