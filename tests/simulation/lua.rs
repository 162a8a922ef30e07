//! Runs the scripts in Lua 5.1, as Redis does, over the model.

use mlua::{Error, Function, Lua, LuaString, Result, Value, Variadic};

use super::{HashMap, Reply, world::WORLD};

/// The scripts: their names and their sources.
pub const SCRIPTS: [(&str, &str); 2] = [
    ("count_views", include_str!("../../src/store/count_views.lua")),
    ("save", include_str!("../../src/store/save.lua")),
];

thread_local! {
    static LUA: Lua = new().unwrap();
}

fn new() -> Result<Lua> {
    let lua = Lua::new();
    let redis = lua.create_table()?;
    redis.set("pcall", lua.create_function(|lua, words| command(lua, words, false))?)?;
    redis.set("call", lua.create_function(|lua, words| command(lua, words, true))?)?;
    lua.globals().set("redis", redis)?;
    // Only of maps of texts, as the data of a session's record is.
    let unpack = |_: &Lua, packed: LuaString| {
        rmp_serde::from_slice::<HashMap<String, String>>(&packed.as_bytes()).map_err(Error::external)
    };
    lua.globals().set("cmsgpack", lua.create_table_from([("unpack", lua.create_function(unpack)?)])?)?;
    SCRIPTS.into_iter().try_for_each(|(name, source)| lua.globals().set(name, lua.load(source).into_function()?))?;
    Ok(lua)
}

/// Loads a script of this thread, also in place of another one of this name.
pub fn load(name: &str, source: &str) {
    LUA.with(|lua| lua.globals().set(name, lua.load(source).into_function()?)).unwrap();
}

/// What Redis would reply, an error in its own words.
pub fn run(name: &str, keys: &[Vec<u8>], arguments: &[Vec<u8>]) -> std::result::Result<String, String> {
    let reply = LUA.with(|lua| {
        for (list, texts) in [("KEYS", keys), ("ARGV", arguments)] {
            let texts = texts.iter().map(|text| lua.create_string(text)).collect::<Result<Vec<_>>>()?;
            lua.globals().set(list, texts)?;
        }
        lua.globals().get::<Function>(name)?.call(())
    });
    match reply {
        Ok(Value::String(reply)) => Ok(reply.to_string_lossy()),
        Ok(Value::Table(reply)) => Err(reply.get("err").unwrap()),
        Ok(reply) => panic!("the script returns {reply:?}"),
        Err(error) => Err(format!("ERR {error}")),
    }
}

fn command(lua: &Lua, words: Variadic<LuaString>, raises: bool) -> Result<Value> {
    let words: Vec<_> = words.iter().map(LuaString::as_bytes).collect();
    let words: Vec<&[u8]> = words.iter().map(|word| &**word).collect();
    match WORLD.with_borrow_mut(|world| world.execute(&words)) {
        Ok(Reply::Nil) => Ok(Value::Boolean(false)),
        Ok(Reply::Int(number)) => Ok(Value::Number(number as f64)),
        Ok(Reply::Bulk(text)) => lua.create_string(text).map(Value::String),
        Ok(Reply::Ok) => lua.create_table_from([("ok", "OK")]).map(Value::Table),
        Err(error) if raises => Err(Error::runtime(error)),
        Err(error) => lua.create_table_from([("err", error)]).map(Value::Table),
    }
}
