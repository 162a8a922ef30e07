//! Promise: the script that counts is atomic even if a command inside it fails, and no error text can
//! be mistaken for the count of another visitor.

use crate::common::{Redis, Service, Visitor, behind_proxy, session_id};

/// The time to live of a record in ms, how many ms before it the counts expire, the time to live of a reply in s, the
/// key of the first view, and that the session of the one view is to be renewed.
const SETTINGS: [&str; 5] = ["100000", "1000", "3600", "1", "1"];

/// A visitor after one view of `/foo`, and the id of the session, whose record tower-sessions wrote.
async fn session(redis: &Redis, service: &Service) -> (Visitor, String) {
    let mut visitor = Visitor::new();
    assert_eq!(visitor.count(service, "/foo").await, 1);
    let id = session_id(visitor.cookie.as_ref().unwrap());
    assert!(redis.pttl(&id) > 0);
    (visitor, id)
}

/// Calls the script for one view of `/foo`, preceded by some Lua.
fn count(redis: &Redis, before: &str, number: &str, id: &str) -> String {
    let views = format!("v:{{{id}}}");
    let arguments = [&[number], &SETTINGS[..], &["/foo"]].concat();
    redis.count_views(before, &["calls:test", id, &views], &arguments)
}

/// Lua that makes a command fail with this error.
fn failing(command: &str, error: &str) -> String {
    format!(
        "local server = redis
         local redis = {{ pcall = function(command, ...)
           if command == '{command}' then return {{ err = '{error}' }} end
           return server.pcall(command, ...)
         end }}"
    )
}

#[tokio::test]
async fn an_error_is_one_line_whatever_it_contains() {
    let redis = Redis::start();
    let (_, id) = session(&redis, &Service::on(&redis)).await;
    for (command, error) in [("HINCRBY", "ERR a\\n41"), ("GET", "41\\r\\n42"), ("PTTL", "\\n1")] {
        let reply = count(&redis, &failing(command, error), "1", &id);
        let lines: Vec<_> = reply.lines().collect();
        assert_eq!(lines.len(), 2, "{command}: {reply:?}");
        assert!(lines[1].starts_with('-'), "{command}: {reply:?}");
        assert_eq!(redis.pttl(&format!("v:{{{id}}}")), -2, "{command}: views exist");
        redis.cli(&["DEL", "calls:test"]);
    }
}

#[tokio::test]
async fn a_reply_that_cannot_be_stored_undoes_the_views() {
    let redis = Redis::start();
    let (_, id) = session(&redis, &Service::on(&redis)).await;
    let views = format!("v:{{{id}}}");
    let reply = count(&redis, &failing("SET", "OOM no memory"), "1", &id);
    assert!(reply.contains("OOM no memory"), "{reply}");
    assert_eq!(redis.pttl(&views), -2);
    assert_eq!(count(&redis, "", "1", &id), "1\n2");
    let reply = count(&redis, &failing("SET", "OOM no memory"), "2", &id);
    assert!(reply.contains("OOM no memory"), "{reply}");
    assert_eq!(redis.cli(&["HGET", &views, "/foo"]), "2");
    // The key of the reply has another type.
    redis.cli(&["DEL", "calls:test"]);
    redis.cli(&["RPUSH", "calls:test", "x"]);
    let reply = count(&redis, "", "2", &id);
    assert!(reply.contains("WRONGTYPE"), "{reply}");
    assert_eq!(redis.cli(&["HGET", &views, "/foo"]), "2");
}

#[tokio::test]
async fn an_outdated_call_changes_nothing() {
    let redis = Redis::start();
    let (_, id) = session(&redis, &Service::on(&redis)).await;
    let views = format!("v:{{{id}}}");
    redis.expect_ok(&["SET", "calls:test", "5\n77"]);
    redis.cli(&["PEXPIRE", &id, "50000"]);
    // This call would have counted the second view and renewed the session.
    assert_eq!(count(&redis, "", "4", &id), "5\n77");
    assert_eq!(redis.cli(&["GET", "calls:test"]), "5\n77");
    assert_eq!(redis.pttl(&views), -2);
    assert!(redis.pttl(&id) <= 50_000, "renewed");
    // This one would have counted a view of another page.
    assert_eq!(count(&redis, "", "6", &id), "6\n2");
    let arguments = [&["5"], &SETTINGS[..], &["/bar"]].concat();
    let keys = ["calls:test", &id, &views];
    assert_eq!(redis.count_views("", &keys, &arguments), "6\n2");
    assert_eq!(redis.cli(&["HGETALL", &views]), "/foo\n2");
}

#[tokio::test]
async fn counts_are_whole_numbers_up_to_2_to_the_53() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    let (mut visitor, id) = session(&redis, &service).await;
    visitor.count(&service, "/foo").await;
    let last = 1_u64 << 53;
    for before in [99_999_999_999_998, 999_999_999_999_999, last - 2] {
        let views = format!("v:{{{id}}}");
        redis.cli(&["HSET", &views, "/foo", &before.to_string()]);
        for count in [before + 1, before + 2] {
            assert_eq!(visitor.count(&service, "/foo").await, count);
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_unpacked_loses_no_view() {
    let (redis, proxy, service, other) = behind_proxy().await;
    let (mut visitor, id) = session(&redis, &service).await;
    let record = format!("saved:{id}");
    redis.cli(&["COPY", &id, &record]);
    for broken in [&["SET", &id, "no record at all, whatever it is", "KEEPTTL"][..], &["LPUSH", &id, "x"]] {
        if broken[0] == "LPUSH" {
            redis.cli(&["DEL", &id]);
        }
        redis.cli(broken);
        // In one batch with views that are counted.
        proxy.close();
        let views = (0..10).map(async |n| {
            let mut visitor = if n % 3 == 1 { visitor.clone() } else { other.clone() };
            if n == 9 {
                proxy.open();
            }
            visitor.view(&service, "/foo").await.status
        });
        let statuses = futures_util::future::join_all(views).await;
        let refused = statuses.iter().filter(|status| **status == 503).count();
        assert_eq!(refused, 3, "{statuses:?}");
        assert_eq!(redis.pttl(&format!("v:{{{id}}}")), -2, "views exist");
        redis.cli(&["COPY", &record, &id, "REPLACE"]);
    }
    assert_eq!(visitor.count(&service, "/foo").await, 2);
    assert_eq!(other.clone().count(&service, "/foo").await, 15);
}

#[tokio::test]
async fn made_up_ids_leave_nothing_behind() {
    let redis = Redis::start();
    let service = Service::on(&redis);
    for n in 10..20 {
        let mut visitor = Visitor::with_cookie(format!("id=AAAAAAAAAAAAAAAAAAAA{n}"));
        assert_eq!(visitor.count(&service, "/").await, 1);
        redis.cli(&["DEL", &session_id(visitor.cookie.as_ref().unwrap())]);
    }
    assert_eq!(redis.cli(&["KEYS", "*"]), "");
}
