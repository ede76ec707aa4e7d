//! Who gets in, who waits, who is refused, and that nothing is left behind.

use std::time::Instant;

use super::super::rate::Rate;
use super::*;
use crate::auth::testing::{Watch, env};

fn share(rate: u32, requests: usize, streams: usize) -> Share {
    Share { rate: Rate::per_second(rate, rate), requests, streams }
}

fn gate(config: LimitsConfig) -> (Gate, Watch) {
    let watch = Watch::default();
    (Gate::new(config, &env(&watch)), watch)
}

fn who(id: &str, tenant: &str) -> Who {
    Who::Caller { id: id.into(), tenant: (!tenant.is_empty()).then(|| tenant.to_owned()) }
}

fn config() -> LimitsConfig {
    LimitsConfig { caller: share(1000, 4, 2), tenant: share(1000, 6, 3), ..LimitsConfig::default() }
}

async fn refusal(gate: &Gate, who: Who) -> Refused {
    match gate.enter(who).await {
        Ok(_) => panic!("it was let in"),
        Err(refused) => refused,
    }
}

#[tokio::test]
async fn a_caller_has_less_than_its_tenant() {
    let (gate, _) = gate(config());
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(gate.enter(who("anna", "acme")).await.unwrap());
    }
    let refused = refusal(&gate, who("anna", "acme")).await;
    assert_eq!((refused.limit, refused.most, refused.tenant.as_str()), ("caller-requests", 4, "acme"));
    for _ in 0..2 {
        held.push(gate.enter(who("bert", "acme")).await.unwrap());
    }
    assert_eq!(refusal(&gate, who("bert", "acme")).await.limit, "tenant-requests");
    // What the tenant refused is not counted as the caller's, nor anybody else's.
    held.push(gate.enter(who("bert", "")).await.unwrap());
    held.push(gate.enter(who("carl", "other")).await.unwrap());
    drop(held);
    let state = gate.state();
    for key in ["c/anna", "c/bert", "t/acme"] {
        assert_eq!(state.requests.of(key), 0, "{key}");
    }
}

#[tokio::test]
async fn rates_are_of_callers_and_of_tenants() {
    let config = LimitsConfig { caller: share(10, 4, 2), tenant: share(15, 6, 3), ..LimitsConfig::default() };
    let (gate, watch) = gate(config);
    let mut soon = 0;
    for _ in 0..10 {
        soon += usize::from(gate.take(&who("anna", "acme")).unwrap().is_zero());
    }
    assert_eq!(soon, 10);
    // The next five stand in line, one each 100 ms: that is as long as anybody waits.
    for n in 1..=5 {
        assert_eq!(gate.take(&who("anna", "acme")).unwrap(), Duration::from_millis(100) * n);
    }
    let refused = gate.take(&who("anna", "acme")).unwrap_err();
    assert_eq!((refused.limit, refused.most), ("caller-rate", 10));
    assert!(refused.after > PATIENCE && refused.after <= Duration::from_secs(1), "{refused:?}");
    let refused = (0..20).find_map(|_| gate.take(&who("bert", "acme")).err()).unwrap();
    assert_eq!((refused.limit, refused.tenant.as_str()), ("tenant-rate", "acme"));
    assert_eq!(gate.take(&who("carl", "other")), Ok(Duration::ZERO));
    assert_eq!(gate.take(&Who::Operator), Ok(Duration::ZERO));
    watch.pass(2);
    assert_eq!(gate.take(&who("anna", "acme")), Ok(Duration::ZERO));
}

#[tokio::test]
async fn streams_are_counted_by_themselves() {
    let (gate, _) = gate(config());
    let mut open = Vec::new();
    for _ in 0..2 {
        let pass = gate.enter(who("anna", "acme")).await.unwrap();
        pass.stream().unwrap();
        pass.stream().unwrap();
        open.push(pass);
    }
    // They hold no place of a request any more.
    let mut requests = Vec::new();
    for _ in 0..4 {
        requests.push(gate.enter(who("anna", "acme")).await.unwrap());
    }
    assert_eq!(requests[0].stream().unwrap_err().limit, "caller-streams");
    let bert = gate.enter(who("bert", "acme")).await.unwrap();
    bert.stream().unwrap();
    let other = gate.enter(who("bert", "acme")).await.unwrap();
    assert_eq!(other.stream().unwrap_err().limit, "tenant-streams");
    drop((open, requests, bert, other));
    let state = gate.state();
    assert_eq!((state.streams.of("t/acme"), state.requests.of("t/acme")), (0, 0));
}

#[tokio::test]
async fn a_tenant_with_a_long_line_does_not_keep_another_waiting() {
    let (working, working_of_one_tenant) = (4, 3);
    let share = share(1_000_000, 1000, 1);
    let usual = LimitsConfig::default();
    let (gate, _) =
        gate(LimitsConfig { caller: share, tenant: share, working, working_of_one_tenant, ..usual });
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(gate.enter(who("anna", "loud")).await.unwrap());
    }
    let line: Vec<_> = (0..100)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter(who("anna", "loud")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    // The fourth place was left free, and is free again each time.
    for _ in 0..10 {
        gate.enter(who("bert", "quiet")).await.unwrap();
    }
    // When all are taken, the next one is the other tenant's.
    let operator = gate.enter(Who::Operator).await.unwrap();
    let quiet = tokio::spawn({
        let gate = gate.clone();
        async move { gate.enter(who("bert", "quiet")).await }
    });
    tokio::task::yield_now().await;
    busy.pop();
    busy.pop();
    let entered = timeout(Duration::from_secs(4), quiet).await.expect("it is the other's turn").unwrap();
    assert!(entered.is_ok());
    drop((entered, operator));
    // Whoever waits for too long is told.
    let mut told = 0;
    drop(busy);
    for one in line {
        told += usize::from(one.await.unwrap().is_err_and(|refused| refused.limit == "server-working"));
    }
    assert_eq!(told, 0, "all of them had their turn in the end");
    assert_eq!(gate.state().turns.come("t/loud", 1), Place::Now);
}

#[tokio::test]
async fn who_waits_too_long_is_told_and_leaves_the_line() {
    let usual = LimitsConfig::default();
    let (gate, _) =
        gate(LimitsConfig { working: 1, working_of_one_tenant: 1, wait: Duration::from_millis(50), ..usual });
    let busy = gate.enter(Who::Operator).await.unwrap();
    let refused = refusal(&gate, who("anna", "acme")).await;
    assert_eq!((refused.limit, refused.most), ("server-working", 1));
    // One who hangs up leaves the line as well.
    let waits = tokio::spawn({
        let gate = gate.clone();
        async move { gate.enter(who("anna", "acme")).await.map(drop) }
    });
    tokio::task::yield_now().await;
    waits.abort();
    let _ = waits.await;
    assert!(gate.state().waiting.is_empty());
    busy.worked();
    gate.enter(who("anna", "acme")).await.unwrap();
}

#[tokio::test]
async fn a_refusal_takes_a_while_and_there_are_only_so_many_of_them() {
    let usual = LimitsConfig::default();
    let (gate, _) = gate(LimitsConfig { caller: share(1, 1, 1), ..usual });
    let _one = gate.enter(who("anna", "acme")).await.unwrap();
    let since = Instant::now();
    let all = (0..MOST_HELD + 10).map(|_| refusal(&gate, who("anna", "acme")));
    let all = futures_util::future::join_all(all).await;
    assert!(since.elapsed() >= PENALTY);
    assert_eq!(all.iter().filter(|refused| refused.flood).count(), 10);
    assert_eq!(gate.state().held.of("c/anna"), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_asked_in_one_moment_do_not_come_back_in_one_moment() {
    let (gate, _) = gate(LimitsConfig { caller: share(1, 1, 1), ..LimitsConfig::default() });
    let _one = gate.enter(who("anna", "acme")).await.unwrap();
    let since = tokio::time::Instant::now();
    let all = (0..400).map(|_| async {
        refusal(&gate, who("anna", "acme")).await;
        since.elapsed()
    });
    let all = futures_util::future::join_all(all).await;
    for tenth in 0..10 {
        let from = PENALTY + PENALTY_SPREAD * tenth / 10;
        let there = all.iter().filter(|told| (from..from + PENALTY_SPREAD / 10).contains(*told)).count();
        assert!((10..80).contains(&there), "{there} of 400 from {from:?} on");
    }
}

#[tokio::test]
async fn strangers_are_counted_by_where_they_are() {
    let usual = LimitsConfig::default();
    let (gate, watch) = gate(LimitsConfig { strangers: Rate::per_second(1, 3), ..usual });
    for number in 0..3 {
        assert_eq!(gate.stranger_waits("2001:db8::1"), None);
        gate.stranger(&format!("2001:db8::{number}"));
    }
    let wait = gate.stranger_waits("2001:db8::9").unwrap();
    assert_eq!(wait, Duration::from_secs(1));
    assert_eq!(gate.stranger_waits("2001:db8:1::1"), None);
    let told = gate.turn_away("2001:db8::9", wait).await;
    assert_eq!((told.limit, told.most, told.flood), ("stranger-rate", 1, false));
    watch.pass(1);
    assert_eq!(gate.stranger_waits("2001:db8::9"), None);
}
