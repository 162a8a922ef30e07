//! Runs the scripts in Lua 5.1, as Redis does, over the model.

use std::cell::RefCell;

use mlua::{Function, Lua, LuaString, Result, Value, Variadic};
use serde::Deserialize;

use super::model::{Model, Reply};

/// The one server of the history that this thread plays.
#[derive(Clone, Debug, Default)]
pub struct Server {
    pub model: Model,
    /// In the next script, the index of the command that fails, and its error.
    pub fails: Option<(usize, &'static str)>,
    /// Ms that each command of a script takes. Redis before 7.2 sees them pass.
    pub tick: u64,
}

thread_local! {
    pub static SERVER: RefCell<Server> = RefCell::default();
}

pub struct Script {
    lua: Lua,
    function: Function,
}

impl Script {
    pub fn new(source: &str) -> Result<Self> {
        let lua = Lua::new();
        let redis = lua.create_table()?;
        redis.set("pcall", lua.create_function(execute)?)?;
        let call = "return function(...) local reply = redis.pcall(...)
            if type(reply) == 'table' and reply.err then error(reply.err, 0) end return reply end";
        lua.globals().set("redis", &redis)?;
        redis.set("call", lua.load(call).eval::<Function>()?)?;
        let cmsgpack = lua.create_table()?;
        cmsgpack.set("unpack", lua.create_function(unpack)?)?;
        lua.globals().set("cmsgpack", cmsgpack)?;
        let function = lua.load(source).into_function()?;
        Ok(Self { lua, function })
    }

    /// What Redis would reply, an error in its own words.
    pub fn run(&self, keys: &[Vec<u8>], arguments: &[Vec<u8>]) -> std::result::Result<String, String> {
        let texts = |texts: &[Vec<u8>]| {
            let texts = texts.iter().map(|text| self.lua.create_string(text).unwrap());
            self.lua.create_sequence_from(texts).unwrap()
        };
        self.lua.globals().set("KEYS", texts(keys)).unwrap();
        self.lua.globals().set("ARGV", texts(arguments)).unwrap();
        match self.function.call::<Value>(()) {
            Ok(Value::String(reply)) => Ok(reply.to_string_lossy()),
            Ok(Value::Nil) => Ok(String::new()),
            Ok(Value::Table(reply)) => Err(reply.get("err").unwrap()),
            Ok(reply) => panic!("the script returns {reply:?}"),
            Err(error) => Err(format!("ERR {error}")),
        }
    }
}

fn execute(lua: &Lua, command: Variadic<Value>) -> Result<Value> {
    let command: Vec<_> = command.iter().map(text).collect();
    let reply = SERVER.with_borrow_mut(|server| {
        server.model.ahead += server.tick;
        // Commands that undo, or that follow the kept reply, never fail: Redis has already let this script write.
        let may_fail = !matches!(&command[0][..], b"DEL" | b"HDEL" | b"PEXPIRE") && command.last().unwrap() != b"-1";
        if may_fail && let Some((left, error)) = server.fails.take() {
            if left == 0 {
                return Reply::Error(error.to_owned());
            }
            server.fails = (command[0] != b"SET").then_some((left - 1, error));
        }
        server.model.execute(&command)
    });
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        Reply::Int(number) => Value::Number(number as f64),
        Reply::Bulk(text) => Value::String(lua.create_string(text)?),
        Reply::Ok => Value::Table(lua.create_table_from([("ok", "OK")])?),
        Reply::Error(error) => Value::Table(lua.create_table_from([("err", error)])?),
    })
}

fn text(argument: &Value) -> Vec<u8> {
    match argument {
        Value::String(text) => text.as_bytes().to_vec(),
        Value::Integer(number) => number.to_string().into_bytes(),
        Value::Number(number) => format!("{number:.0}").into_bytes(),
        other => panic!("no argument of a command: {other:?}"),
    }
}

/// The first value, if it is a map of texts.
fn unpack(lua: &Lua, packed: LuaString) -> Result<Value> {
    let packed = packed.as_bytes();
    let data = serde_json::Value::deserialize(&mut rmp_serde::Deserializer::new(&packed[..]));
    let data = data.map_err(mlua::Error::external)?;
    let Some(data) = data.as_object() else {
        return Ok(Value::Nil);
    };
    let fields = data.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
    Ok(Value::Table(lua.create_table_from(fields)?))
}
