//! Runs the script in Lua 5.1, as Redis does, over the model.

use fred::types::Value;
use mlua::{Error, Function, Lua, LuaString, Result, Value as LuaValue, Variadic};

use super::{model::Reply, world::WORLD};

pub const SCRIPT: &str = include_str!("../../src/store/compare_and_set.lua");

thread_local! {
    static LUA: Lua = new().unwrap();
}

fn new() -> Result<Lua> {
    let lua = Lua::new();
    let redis = lua.create_table()?;
    redis.set("pcall", lua.create_function(|lua, words| command(lua, words, false))?)?;
    redis.set("call", lua.create_function(|lua, words| command(lua, words, true))?)?;
    lua.globals().set("redis", redis)?;
    lua.globals().set("script", lua.load(SCRIPT).into_function()?)?;
    Ok(lua)
}

/// Loads a script of this thread in place of another one.
pub fn load(source: &str) {
    LUA.with(|lua| lua.globals().set("script", lua.load(source).into_function()?)).unwrap();
}

/// What Redis would reply, or an error in its words.
pub fn run(keys: &[&[u8]], arguments: &[&[u8]]) -> std::result::Result<Value, String> {
    let reply = LUA.with(|lua| {
        for (list, texts) in [("KEYS", keys), ("ARGV", arguments)] {
            let texts = texts.iter().map(|text| lua.create_string(text)).collect::<Result<Vec<_>>>()?;
            lua.globals().set(list, texts)?;
        }
        lua.globals().get::<Function>("script")?.call::<LuaValue>(())
    });
    match reply.map_err(|error| format!("ERR {error}"))? {
        // As Redis has it: the error is the reply.
        LuaValue::Table(reply) if reply.contains_key("err").unwrap() => Err(reply.get("err").unwrap()),
        reply => Ok(read(reply)),
    }
}

/// Converts what a script returns, as Redis does.
fn read(reply: LuaValue) -> Value {
    match reply {
        LuaValue::String(text) => Value::Bytes(text.as_bytes().to_vec().into()),
        LuaValue::Integer(number) => Value::Integer(number),
        LuaValue::Number(number) => Value::Integer(number as i64),
        LuaValue::Table(list) => Value::Array(list.sequence_values().map(|item| read(item.unwrap())).collect()),
        _ => Value::Null,
    }
}

fn command(lua: &Lua, words: Variadic<LuaString>, raises: bool) -> Result<LuaValue> {
    let words: Vec<_> = words.iter().map(LuaString::as_bytes).collect();
    let words: Vec<&[u8]> = words.iter().map(|word| &**word).collect();
    match WORLD.with_borrow_mut(|world| world.execute_in_script(&words)) {
        Ok(Reply::Nil) => Ok(LuaValue::Boolean(false)),
        Ok(Reply::Int(number)) => Ok(LuaValue::Number(number as f64)),
        Ok(Reply::Bulk(text)) => lua.create_string(text).map(LuaValue::String),
        Ok(Reply::Ok) => lua.create_table_from([("ok", "OK")]).map(LuaValue::Table),
        Err(error) if raises => Err(Error::runtime(error)),
        Err(error) => lua.create_table_from([("err", error)]).map(LuaValue::Table),
    }
}
