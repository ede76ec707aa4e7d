//! Logins that end before their tokens do: told to one server, they end at all of them, streams and all.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rhyzome_api::auth::{Authenticator, Authenticators, Ended, RequestDetails, Sessions, Verdict};
use rhyzome_api::kernel::{Caller, Timestamp};
use rhyzome_tests::face::Face;
use rhyzome_tests::wait::until;
use rhyzome_tests::world::World;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

rhyzome_tests::on_both!(
    a_login_that_ends_at_one_server_ends_at_all,
    what_has_ended_is_known_to_a_server_that_comes_later,
    who_tells_of_an_end_must_prove_it,
);

/// How long anything here may take on a busy machine.
const PATIENCE: u64 = 30;

/// Knows `Bearer NAME.SESSION`, and takes `NAME.SESSION` for the word of whoever issued that.
struct Issuer(Arc<Sessions>);

fn caller_of(text: &str) -> Option<Caller> {
    let (name, session) = text.split_once('.')?;
    let mut caller = Caller::operator(name, "issuer/token");
    caller.authenticator = "issuer".into();
    caller.subject = name.into();
    caller.session = Some(session.into());
    Some(caller)
}

impl Authenticator for Issuer {
    fn authenticate<'a>(&'a self, header: Option<&'a str>, _: &'a RequestDetails) -> BoxFuture<'a, Verdict> {
        let caller = header.and_then(|header| caller_of(header.strip_prefix("Bearer ")?));
        Box::pin(std::future::ready(match caller {
            None => Verdict::NotMine,
            Some(caller) => {
                let session = caller.session.as_deref();
                match self.0.is_over("issuer", session, &caller.subject, None) {
                    true => Verdict::RefusedKnown(caller, "this login has ended".into()),
                    false => Verdict::Caller(caller),
                }
            }
        }))
    }

    fn name(&self) -> &str {
        "issuer"
    }

    fn logout<'a>(&'a self, token: &'a str) -> Option<BoxFuture<'a, Result<Ended, String>>> {
        let ended = caller_of(token).ok_or_else(|| "this is no word of mine".to_owned()).map(|caller| {
            let (at, until) = (Timestamp(i64::MAX), Timestamp(i64::MAX));
            let (session, authenticator) = (caller.session.unwrap_or_default(), "issuer".to_owned());
            match session.as_str() {
                // All of them.
                "*" => Ended { authenticator, subject: caller.subject, at, until, ..Ended::default() },
                _ => Ended { authenticator, session, at, until, ..Ended::default() },
            }
        });
        Some(Box::pin(std::future::ready(ended)))
    }
}

/// One of several servers on one database.
struct Server {
    face: Face,
    _following: DropGuard,
}

impl Server {
    async fn new(world: &World) -> Server {
        let (sessions, stop) = (Arc::new(Sessions::default()), CancellationToken::new());
        sessions.read(&world.store).await.unwrap();
        tokio::spawn(sessions.clone().follow(world.store.clone(), stop.clone()));
        let who = Authenticators::new(vec![Arc::new(Issuer(sessions.clone()))]).with_sessions(sessions);
        Server { face: Face::knowing(world, who), _following: stop.drop_guard() }
    }

    async fn lets_in(&self, token: &str) -> bool {
        let header = format!("Bearer {token}");
        let reply = self.face.raw("GET", "/v1/whoami", &[("authorization", &header)], "").await;
        assert!([200, 401].contains(&reply.status), "{}", reply.json);
        reply.status == 200
    }

    async fn tell(&self, token: &str, status: u16) -> Value {
        let form = format!("logout_token={token}");
        self.face.raw("POST", "/v1/login/issuer/ended", &[], form).await.is(status).json
    }
}

async fn a_login_that_ends_at_one_server_ends_at_all(world: World) {
    let (one, other) = (Server::new(&world).await, Server::new(&world).await);
    let anna = [("authorization", "Bearer anna.s1")];
    let mut mine = other.face.stream("/v1/events", &anna).await;
    let mut another = other.face.stream("/v1/events", &[("authorization", "Bearer anna.s2")]).await;
    one.tell("anna.s1", 200).await;
    // The end of the stream, after whatever it has said until then.
    let end = async { while mine.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(PATIENCE), end).await.expect("the stream goes on");
    for server in [&one, &other] {
        until("the login to have ended", PATIENCE, async || (!server.lets_in("anna.s1").await).then_some(()))
            .await;
        assert!(server.lets_in("anna.s2").await && server.lets_in("bert.s3").await);
    }
    // All that somebody has, when their issuer names none.
    one.tell("anna.*", 200).await;
    let end = async { while another.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(PATIENCE), end).await.expect("the stream goes on");
    for server in [&one, &other] {
        until("all to have ended", PATIENCE, async || (!server.lets_in("anna.s2").await).then_some(())).await;
        assert!(server.lets_in("bert.s3").await);
    }
}

async fn what_has_ended_is_known_to_a_server_that_comes_later(world: World) {
    let one = Server::new(&world).await;
    one.tell("anna.s1", 200).await;
    one.tell("anna.s1", 200).await;
    let later = Server::new(&world).await;
    assert!(!later.lets_in("anna.s1").await && later.lets_in("anna.s2").await);
    // What nobody could use any more is not kept.
    world
        .store
        .end_session(Ended { session: "old".into(), until: Timestamp(1), ..Ended::default() })
        .await
        .unwrap();
    world
        .store
        .end_session(Ended { session: "new".into(), until: Timestamp(i64::MAX), ..Ended::default() })
        .await
        .unwrap();
    let kept = world.store.ended_sessions(Timestamp(0)).await.unwrap();
    let kept: Vec<&str> = kept.iter().map(|ended| ended.session.as_str()).collect();
    assert_eq!(kept, ["s1", "new"]);
}

async fn who_tells_of_an_end_must_prove_it(world: World) {
    let one = Server::new(&world).await;
    let said = one.tell("nothing", 400).await;
    assert_eq!(said["detail"], "this is no word of mine");
    one.face.raw("POST", "/v1/login/issuer/ended", &[], "token=anna.s1").await.is_problem(400, "malformed");
    one.face
        .raw("POST", "/v1/login/other/ended", &[], "logout_token=anna.s1")
        .await
        .is_problem(404, "not-found");
    let long = format!("logout_token={}", "x".repeat(70_000));
    one.face.raw("POST", "/v1/login/issuer/ended", &[], long).await.is_problem(413, "too-large");
    assert!(one.lets_in("anna.s1").await);
    assert_eq!(world.store.ended_sessions(Timestamp(0)).await.unwrap(), []);
}
