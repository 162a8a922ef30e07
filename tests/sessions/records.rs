//! Promise: tower-sessions-redis-store reads what the service writes, and the service goes on with what that store wrote,
//! in whatever order the two write. The pages' own data and the counts are what they were.

use std::collections::HashMap;

use axum::{extract::Path, routing::get};
use cloud_run_sessions::web::{
    app::{counted, with_session},
    error::Error,
};
use fred::clients::Client;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower_sessions::{
    Session, SessionStore,
    session::{Id, Record},
};
use tower_sessions_redis_store::RedisStore;

use crate::common::{Redis, Visitor, serve, session_id};

/// The key of the service's own entry in a record.
const ENTRY: &str = "#";

/// A sample of every kind of value that a session can hold.
fn values() -> HashMap<String, Value> {
    let values = [
        json!(null),
        json!(true),
        json!([0, -1, 1.5, u64::MAX, i64::MIN, 1e300]),
        json!("text, Ünïcödé and \"quotes\" / \u{1F980} \u{0}"),
        json!("x".repeat(20_000)),
        json!({"": {"a": [{}, [[]], null]}, "b": 2}),
        json!((0..1000).collect::<Vec<_>>()),
    ];
    values.into_iter().enumerate().map(|(key, value)| (key.to_string(), value)).collect()
}

/// Keeps all values in the session.
async fn keep(session: Session) -> Result<&'static str, Error> {
    for (key, value) in values() {
        session.insert_value(&key, value).await?;
    }
    Ok("kept")
}

/// The value of this key.
async fn kept(session: Session, Path(key): Path<String>) -> Result<String, Error> {
    Ok(json!(session.get_value(&key).await?).to_string())
}

/// The service with these pages, and the other program's store.
async fn start(redis: &Redis) -> (u16, RedisStore<Client>) {
    let service = serve(&["--redis-url", &redis.url()], |routes, sessions| {
        let keep = counted(get(keep), sessions);
        routes.route("/keep", keep).route("/kept/{key}", with_session(get(kept), sessions))
    })
    .await;
    (service, RedisStore::new(redis.client().await))
}

fn id(visitor: &Visitor) -> Id {
    session_id(visitor.cookie.as_ref().unwrap()).parse().unwrap()
}

async fn load(store: &RedisStore<Client>, id: &Id) -> Record {
    store.load(id).await.unwrap().unwrap()
}

fn in_an_hour() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::hours(1)
}

/// A session that the other program has begun.
async fn begun_by(store: &RedisStore<Client>, data: HashMap<String, Value>) -> (Visitor, Id) {
    let mut record = Record { id: Id::default(), data, expiry_date: in_an_hour() };
    store.create(&mut record).await.unwrap();
    (Visitor::with_cookie(format!("id={}", record.id)), record.id)
}

async fn assert_kept(service: u16, visitor: &mut Visitor, data: &HashMap<String, Value>) {
    for (key, value) in data {
        assert_eq!(visitor.view(&service, &format!("/kept/{key}")).await.body, value.to_string());
    }
}

#[tokio::test]
async fn tower_sessions_reads_what_the_service_writes() {
    let redis = Redis::start();
    let (service, store) = start(&redis).await;
    let mut visitor = Visitor::new();
    let assert_record = async |visitor: &Visitor, data: &HashMap<String, Value>| {
        let Record { id: named, data: mut all, expiry_date } = load(&store, &id(visitor)).await;
        assert_eq!(named, id(visitor));
        let left = expiry_date - OffsetDateTime::now_utc();
        let seconds = redis.pttl(&named.to_string()) / 1000;
        assert!((left.whole_seconds() - seconds).abs() <= 2, "it says {left}, and lives for {seconds} s");
        assert!(all.remove(ENTRY).is_some_and(|entry| entry.is_array()));
        assert_eq!(&all, data);
    };
    visitor.view(&service, "/").await;
    assert_record(&visitor, &HashMap::new()).await;
    visitor.view(&service, "/keep").await;
    assert_record(&visitor, &values()).await;
    for path in ["/", "/foo", "/bar"].repeat(10) {
        visitor.view(&service, path).await;
        assert_record(&visitor, &values()).await;
    }
    // A visitor whose first page keeps something.
    let mut visitor = Visitor::new();
    visitor.view(&service, "/keep").await;
    assert_record(&visitor, &values()).await;
}

#[tokio::test]
async fn the_service_goes_on_with_what_tower_sessions_wrote() {
    let redis = Redis::start();
    let (service, store) = start(&redis).await;
    let (mut visitor, id) = begun_by(&store, values()).await;
    for view in 1..=3 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    assert_eq!(session_id(visitor.cookie.as_ref().unwrap()), id.to_string(), "its visitor got another session");
    assert_kept(service, &mut visitor, &values()).await;
    let mut entry = load(&store, &id).await;
    entry.data.remove(ENTRY);
    assert_eq!(entry.data, values());
}

/// Whatever the order of the record's map, and wherever in it the service's entry is.
#[tokio::test]
async fn both_write_a_session_in_turns() {
    let redis = Redis::start();
    let (service, store) = start(&redis).await;
    let (other, _) = start(&redis).await;
    let mut visitor = Visitor::new();
    visitor.view(&service, "/keep").await;
    for turn in 1..=30 {
        let mut record = load(&store, &id(&visitor)).await;
        record.data.insert("turn".to_owned(), json!(turn));
        record.data.remove(&(turn % 10).to_string());
        record.expiry_date = in_an_hour();
        // A HashMap of its own, whose order is another one.
        record.data = record.data.into_iter().collect();
        store.save(&record).await.unwrap();
        // What an instance remembers is out of date. It takes over what was saved.
        let service = if turn % 3 == 0 { other } else { service };
        assert_eq!(visitor.count(&service, "/foo").await, turn);
        record.data.remove(ENTRY);
        assert_kept(service, &mut visitor, &record.data).await;
        let mut after = load(&store, &id(&visitor)).await;
        after.data.remove(ENTRY);
        assert_eq!(after.data, record.data, "turn {turn}");
    }
}

/// An earlier revision kept the counts in a hash beside the record. The record has the path of the first view.
#[tokio::test]
async fn records_of_an_earlier_revision() {
    let redis = Redis::start();
    let (service, store) = start(&redis).await;
    let data = HashMap::from([("1".to_owned(), json!("/foo")), ("cart".to_owned(), json!(["a", "b"]))]);
    let (mut visitor, id) = begun_by(&store, data.clone()).await;
    let counts = format!("v:{{{id}}}");
    redis.cli(&["HSET", &counts, "/foo", "7", "/", "3"]);
    for (path, count) in [("/foo", 1), ("/", 1), ("/foo", 2), ("/bar", 1)] {
        assert_eq!(visitor.count(&service, path).await, count, "counts begin anew");
    }
    assert_kept(service, &mut visitor, &data).await;
    assert_eq!(redis.cli(&["HGET", &counts, "/foo"]), "7", "the earlier revision still uses it");
}
