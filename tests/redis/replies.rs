//! Promise: what Redis replies is checked before it is used. A broken value or reply is an error that the log names
//! without data. Nobody gets another visitor's number, and nothing is lost afterwards.

use fred::{bytes::Bytes, clients::Client, interfaces::KeysInterface};

use crate::common::{Redis, Service, Visitor, behind_proxy, session_id};

/// Something that visitors' data contains and the log must not.
const MARK: &str = "hunter2";

fn id(visitor: &Visitor) -> String {
    session_id(visitor.cookie.as_ref().unwrap())
}

async fn value_of(client: &Client, visitor: &Visitor) -> Bytes {
    client.get(id(visitor)).await.unwrap()
}

/// Views `/` this often as a new visitor.
async fn visitor_of(service: &Service, views: u64) -> Visitor {
    let mut visitor = Visitor::new();
    for view in 1..=views {
        assert_eq!(visitor.count(service, "/").await, view);
    }
    visitor
}

/// Values that neither this service nor tower-sessions could have written under this key.
fn broken(own: &Bytes, others: &Bytes) -> Vec<Bytes> {
    const ID_ENDS: usize = 19;
    let (begin, _) = own.split_at(ID_ENDS);
    let with = |rest: &[u8]| Bytes::from([begin, rest].concat());
    let mut broken = vec![
        others.clone(),
        Bytes::from([&others[..ID_ENDS], &own[ID_ENDS..]].concat()),
        Bytes::from([own, &b"\xc0"[..]].concat()),
        Bytes::from(MARK),
        Bytes::from(format!("{{\"#\":[1,[],{{\"{MARK}\":99}}]}}")),
        Bytes::from((0..100).map(|_| rand::random()).collect::<Vec<u8>>()),
        // Wrong nesting: no map, an entry that is no array, deep arrays, a map that never ends.
        with(b"\x91\xa7hunter2"),
        with(b"\x81\xa1#\xa7hunter2\xc0"),
        with(&[b"\x81\xa1a", &b"\x91".repeat(50_000)[..]].concat()),
        with(b"\xdf\xff\xff\xff\xff\xa0\xa0"),
    ];
    broken.extend((0..own.len()).step_by(3).map(|length| own.slice(..length)));
    broken
}

#[tokio::test]
async fn values_in_redis() {
    let redis = Redis::start();
    let client = redis.client().await;
    // One instance remembers the session, the other reads it.
    let services = [Service::on(&redis), Service::on(&redis)];
    let mut visitor = visitor_of(&services[0], 3).await;
    let mut other = visitor_of(&services[0], 40).await;
    let own = value_of(&client, &visitor).await;
    let others = value_of(&client, &other).await;
    let mut view = 3;
    for broken in broken(&own, &others) {
        let right = value_of(&client, &visitor).await;
        for (service, reader) in [(&services[0], "remembers"), (&services[1], "reads")] {
            let () = client.set(id(&visitor), broken.clone(), None, None, false).await.unwrap();
            for _ in 0..2 {
                let answer = visitor.view(service, "/").await;
                let what = format!("{broken:?}, on an instance that {reader} it: {answer:?}");
                assert_eq!((answer.status, answer.cookie()), (503, None), "{what}");
                assert_eq!(value_of(&client, &visitor).await, broken, "{what}");
            }
            let () = client.set(id(&visitor), right.clone(), None, None, false).await.unwrap();
        }
        view += 1;
        assert_eq!(visitor.count(&services[0], "/").await, view);
    }
    for wrong_type in ["RPUSH", "SADD"] {
        let right = value_of(&client, &visitor).await;
        redis.cli(&["DEL", &id(&visitor)]);
        redis.cli(&[wrong_type, &id(&visitor), MARK]);
        for service in &services {
            assert_eq!(visitor.view(service, "/").await.status, 503, "{wrong_type}");
        }
        let () = client.set(id(&visitor), right, None, None, false).await.unwrap();
        view += 1;
        assert_eq!(visitor.count(&services[1], "/").await, view, "{wrong_type}");
    }
    assert_eq!(other.count(&services[0], "/").await, 41);
    for service in services {
        let log = service.stop();
        assert!(log.iter().any(|line| line.contains("a session's value cannot be read")), "{log:#?}");
        let leaks = |line: &&String| line.contains(MARK) || line.contains(&id(&visitor));
        assert_eq!(log.iter().find(leaks), None);
    }
}

/// Replies as they come over the network. The command was executed.
fn forged(others: &[u8]) -> Vec<Vec<u8>> {
    let texts = [
        ":7\r\n",
        ":-1\r\n",
        "*0\r\n",
        "*2\r\n:1\r\n:1\r\n",
        "*1\r\n:2\r\n",
        "*1\r\n*1\r\n$-1\r\n",
        "*1\r\n*1\r\n*1\r\n:1\r\n",
        "*1\r\n$7\r\nhunter2\r\n",
        "$7\r\nhunter2\r\n",
        "+hunter2\r\n",
        "+OK\r\n",
        // What is no reply at all.
        "hunter2\r\n",
        "*-7\r\n",
        "$-7\r\n",
        "*99999999999999999999\r\n",
        "\r\n\r\n",
    ];
    let mut forged: Vec<_> = texts.into_iter().map(|text| text.as_bytes().to_vec()).collect();
    let bulk = [format!("${}\r\n", others.len()).as_bytes(), others, b"\r\n"].concat();
    forged.extend([[b"*1\r\n", &bulk[..]].concat(), bulk, vec![0xff; 100]]);
    forged
}

#[tokio::test]
async fn replies_on_the_way() {
    let (redis, proxy, service, mut visitor) = behind_proxy().await;
    let client = redis.client().await;
    let mut other = visitor_of(&service, 40).await;
    let write = if redis.has_ifeq() { "IFEQ" } else { "EVALSHA" };
    let others = value_of(&client, &other).await;
    let mut last = 2;
    for command in [write, "GETEX"] {
        for reply in forged(&others) {
            let what = format!("{command}: {}", reply.escape_ascii());
            if command == "GETEX" {
                // The instance forgets the session.
                let right = value_of(&client, &visitor).await;
                let () = client.set(id(&visitor), "broken", None, None, false).await.unwrap();
                assert_eq!(visitor.view(&service, "/").await.status, 503, "{what}");
                let () = client.set(id(&visitor), right, None, None, false).await.unwrap();
            }
            let cookie = visitor.cookie.clone();
            proxy.forge_reply(command, &reply);
            let answer = visitor.view(&service, "/").await;
            assert!(!proxy.stop_forging(), "not forged, {what}");
            assert_eq!(answer.cookie(), None, "{what}: {answer:?}");
            // The view may have been counted, unless only reading failed.
            let most = match answer.status {
                200 => {
                    assert_eq!(answer.count(), last + 1, "{what}");
                    last += 1;
                    last
                }
                503 if command == "GETEX" => last,
                503 => last + 1,
                _ => panic!("{what}: {answer:?}"),
            };
            let count = visitor.count(&service, "/").await;
            assert!((last + 1..=most + 1).contains(&count), "{what}: {answer:?}, and then {count} after {last}");
            assert_eq!(visitor.cookie, cookie, "{what}");
            last = count;
        }
    }
    assert_eq!(other.count(&service, "/").await, 41);
    for reply in forged(&others) {
        proxy.forge_reply("NX", &reply);
        let mut new = Visitor::new();
        let answer = new.view(&service, "/").await;
        assert!(!proxy.stop_forging());
        let is_ok = reply == b"+OK\r\n" || answer.status == 503 || answer.status == 200 && answer.count() == 1;
        assert!(is_ok, "{}: {answer:?}", reply.escape_ascii());
        assert_eq!(new.count(&service, "/").await, if answer.status == 200 { 2 } else { 1 });
    }
    let log = service.stop();
    let leaks = |line: &&String| line.contains(MARK) || line.contains(&id(&visitor));
    assert_eq!(log.iter().find(leaks), None);
}
