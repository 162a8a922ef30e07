//! Promise: the service uses the best compare-and-set that the server has: `SET … IFEQ` in either form, or the script. It
//! finds out at connecting. What it promises of sessions holds with each.

use axum::routing::get;
use futures_util::future::join_all;
use tower_sessions::Session;

use cloud_run_sessions::web::{app::with_session, error::Error};

use crate::common::{
    Dialect, Form, Proxy, Redis, Service, Visitor, Waiting, assert_each_once, eventually, far_from, one_core, serve,
    session_id,
};

/// Starts the service on this server.
fn on(dialect: &Dialect) -> Service {
    Service::start([("REDIS_URL", dialect.url().as_str())])
}

fn id(visitor: &Visitor) -> String {
    session_id(visitor.cookie.as_ref().unwrap())
}

#[tokio::test]
async fn the_form_is_found_at_connecting() {
    for form in Form::ALL {
        let redis = Redis::start();
        let dialect = Dialect::start(&redis, form).await;
        // One thread, since each one's connection finds it out.
        let start = || Service::launch(&mut one_core([("REDIS_URL", dialect.url().as_str())]));
        let service = start();
        let mut visitor = Visitor::new();
        visitor.view(&service, "/").await;
        // The form, and the user's rights.
        let (check, write) = match form {
            Form::Script => (&["SET IFEQ", "EVAL", "GETEX", "DEL", "EVALSHA"][..], "EVALSHA"),
            Form::IfEqual | Form::NullUnlessEqual => (&["SET IFEQ", "GETEX", "DEL"][..], "SET IFEQ"),
        };
        assert_eq!(dialect.commands(), [check, &["SET"]].concat(), "{form:?}: connecting, and a first view");
        assert_eq!(visitor.count(&service, "/").await, 2);
        assert_eq!(dialect.commands(), [write], "{form:?}: a second view");
        assert_eq!(visitor.count(&start(), "/").await, 3);
        assert_eq!(dialect.commands(), [check, &["GETEX", write]].concat(), "{form:?}: on another instance");
        redis.cli(&["DEL", &id(&visitor)]);
        assert_eq!(visitor.count(&service, "/").await, 1);
        // Null may mean, in one of the forms, that it has changed.
        let tells = if form == Form::Script { &[][..] } else { &["GETEX"] };
        assert_eq!(dialect.commands(), [&[write], tells, &["SET"]].concat(), "{form:?}: a session that is gone");
    }
}

/// A full server refuses before it looks at the options. So its form is unknown until it has room and the service writes.
#[tokio::test]
async fn a_full_server_is_connected() {
    let redis = Redis::start();
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]);
    let service = Service::on(&redis);
    assert_eq!(Visitor::new().view(&service, "/").await.status, 503);
    let is_logged = async || service.log().iter().any(|line| line.contains("OOM")).then_some(());
    eventually("the log says why", is_logged).await;
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "0"]);
    let mut visitor = Visitor::new();
    for view in 1..=3 {
        assert_eq!(visitor.count(&service, "/").await, view);
    }
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(visitor.view(&service, "/").await.status, 503);
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(visitor.count(&service, "/").await, 4);
}

/// Without scripts, each session that would share a call gets a `SET … IFEQ` of its own.
#[tokio::test]
async fn scripts_are_forbidden() {
    const VISITORS: usize = 20;
    for form in [Form::IfEqual, Form::NullUnlessEqual] {
        let redis = Redis::start();
        let dialect = Dialect::start_without_scripts(&redis, form).await;
        let (proxy, service) = far_from(&dialect, &[]).await;
        let mut visitors = vec![Visitor::new(); VISITORS];
        join_all(visitors.iter_mut().map(|visitor| visitor.count(&service, "/"))).await;
        for view in 2..=4 {
            dialect.commands();
            let waiting = Waiting::send_behind_a_call(&proxy, &service, &visitors).await;
            proxy.open();
            assert_eq!(Waiting::counts(waiting).await, [view; VISITORS], "{form:?}");
            let commands = dialect.commands();
            let times = |name| commands.iter().filter(|command| **command == name).count();
            // The script is tried by the first views that would share a call, and never again.
            let expected = (VISITORS, usize::from(view == 2));
            assert_eq!((times("SET IFEQ"), times("EVALSHA")), expected, "{form:?}, view {view}: {commands:?}");
        }
    }
}

#[tokio::test]
async fn views_overlap_on_two_instances() {
    const VIEWS: u64 = 300;
    for form in Form::ALL {
        println!("{form:?}");
        let redis = Redis::start();
        let dialect = Dialect::start(&redis, form).await;
        let services = [on(&dialect), on(&dialect)];
        let mut visitor = Visitor::new();
        visitor.count(&services[0], "/").await;
        let tabs = (0..30).map(async |n| {
            let (mut visitor, mut counts) = (visitor.clone(), Vec::new());
            for view in 0..VIEWS as usize / 30 {
                counts.push(visitor.count(&services[(n + view) % 2], "/").await);
            }
            counts
        });
        assert_each_once(join_all(tabs).await.concat(), 2..VIEWS + 2);
    }
}

#[tokio::test]
async fn a_session_is_deleted_while_its_views_are_in_flight() {
    for form in Form::ALL {
        let redis = Redis::start();
        let dialect = Dialect::start(&redis, form).await;
        let proxy = Proxy::start(&dialect).await;
        let service = Service::start([("REDIS_URL", proxy.url().as_str())]);
        let mut visitor = Visitor::new();
        for view in 1..=3 {
            assert_eq!(visitor.count(&service, "/").await, view);
        }
        proxy.close();
        let before = proxy.calls();
        let old = id(&visitor);
        let (mut first, mut second) = (visitor.clone(), visitor.clone());
        let delete = async {
            eventually("a call", async || (proxy.calls() > before).then_some(())).await;
            redis.cli(&["DEL", &old]);
            proxy.open();
        };
        let (first_count, second_count, ()) =
            tokio::join!(first.count(&service, "/"), second.count(&service, "/"), delete);
        // Each view belongs to the session that is gone, or is the first of a new one.
        for (count, visitor) in [(first_count, &first), (second_count, &second)] {
            let is_new = id(visitor) != old;
            assert!(if is_new { count == 1 } else { (4..=5).contains(&count) }, "{form:?}: {count}, new: {is_new}");
        }
        assert_eq!(redis.pttl(&old), -2, "{form:?}: revived");
        let mut late = visitor.clone();
        assert_eq!((late.count(&service, "/").await, id(&late) == old), (1, false), "{form:?}");
    }
}

async fn leave(session: Session) -> Result<&'static str, Error> {
    session.flush().await?;
    Ok("gone")
}

/// An instance that still remembers the session answers 503, and gives no number.
#[tokio::test]
async fn a_session_is_ended_on_another_instance() {
    for form in Form::ALL {
        let redis = Redis::start();
        let dialect = Dialect::start(&redis, form).await;
        let service = on(&dialect);
        let with_leave =
            |routes: axum::Router, sessions: &_| routes.route("/leave", with_session(get(leave), sessions));
        let other = serve(&["--redis-url", &dialect.url()], with_leave).await;
        let mut visitor = Visitor::new();
        for view in 1..=3 {
            assert_eq!(visitor.count(&service, "/").await, view);
        }
        let old = id(&visitor);
        assert_eq!(visitor.clone().view(&other, "/leave").await.body, "gone");
        for _ in 0..2 {
            let answer = visitor.view(&service, "/").await;
            assert_eq!((answer.status, answer.cookie()), (503, None), "{form:?}: {answer:?}");
        }
        let left = redis.pttl(&old);
        assert!((20_000..=30_000).contains(&left), "{form:?}: the mark of its end lives for {left} ms");
        redis.cli(&["DEL", &old]);
        assert_eq!(visitor.count(&service, "/").await, 1, "{form:?}");
    }
}
