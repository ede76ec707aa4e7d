use serde_json::json;

use super::*;
use crate::resources::testing::{complaints, fields, keys, object, stored_as};

#[test]
fn texts_have_an_end() {
    let long = json!({"description": "x".repeat(1001), "billing_reference": "x".repeat(201)});
    let said = complaints::<Tenant>(long, &Facts::default());
    assert_eq!(fields(&said), ["spec.description", "spec.billing_reference"]);
    assert_eq!(complaints::<Tenant>(json!({}), &Facts::default()), []);
}

#[test]
fn limits_have_an_end_too() {
    let most = json!({"quota": {"vcpus": MOST, "instances": 0}});
    assert_eq!(complaints::<Tenant>(most, &Facts::default()), []);
    let beyond = json!({"quota": {"vcpus": MOST + 1}});
    assert_eq!(fields(&complaints::<Tenant>(beyond, &Facts::default())), ["spec.quota.vcpus"]);
}

#[test]
fn domains_and_realms_are_names() {
    let good = json!({"domains": ["acme.example", "a.b-1.acme.example"], "realm": "Acme_1"});
    assert_eq!(complaints::<Tenant>(good, &Facts::default()), []);
    let bad = ["acme", "Acme.example", "-a.example", "a..example", "a.example.", "10.0.0.1", "*.a.example"];
    for bad in bad {
        let said = complaints::<Tenant>(json!({"domains": [bad]}), &Facts::default());
        assert_eq!(fields(&said), ["spec.domains.0"], "{bad}");
    }
    let twice = json!({"domains": ["a.example", "a.example"], "realm": "a/b"});
    assert_eq!(fields(&complaints::<Tenant>(twice, &Facts::default())), ["spec.realm", "spec.domains.1"]);
}

#[test]
fn what_one_tenant_has_no_other_has() {
    let tenant = object::<Tenant>(json!({"domains": ["a.example"], "realm": "a"}));
    let plan = Tenant::create(&tenant, &Facts::default());
    assert_eq!(keys(&plan.claims), ["domain.a.example", "realm.a"]);
    assert_eq!(Tenant::update(&tenant, &tenant, &Facts::default()).claims, plan.claims);
}

#[test]
fn a_domain_of_the_api_has_both_or_neither() {
    for (api, wanted) in [
        (json!({"domain": "api.a.example"}), None),
        (json!({"domain": "api.a.example", "certificate": "c", "key": "k"}), None),
        (json!({"domain": "api.a.example", "certificate": "c"}), Some("spec.api.key")),
        (json!({"domain": "api.a.example", "key": "k"}), Some("spec.api.certificate")),
        (json!({"domain": "Api"}), Some("spec.api.domain")),
    ] {
        let said = complaints::<Tenant>(json!({ "api": api }), &Facts::default());
        assert_eq!(fields(&said), wanted.into_iter().collect::<Vec<_>>());
    }
    let api = json!({"domains": ["a.example"], "api": {"domain": "a.example"}});
    let plan = Tenant::create(&object::<Tenant>(api), &Facts::default());
    assert_eq!(keys(&plan.claims), ["domain.a.example", "api.a.example"]);
    let with = |certificate: &str, key: &str| {
        let api = json!({"domain": "a.example", "certificate": certificate, "key": key});
        object::<Tenant>(json!({ "api": api }))
    };
    let changed = |new: &Object<Tenant>| Tenant::update(&with("c", "k"), new, &Facts::default()).errors;
    assert_eq!(fields(&changed(&with("d", "k"))), ["spec.api.key"]);
    assert!(changed(&with("c", "k")).is_empty() && changed(&with("d", "l")).is_empty());
}

#[test]
fn a_realm_is_made_once_and_stays() {
    let of = |spec: Value, claims: Value, status: Value| stored_as::<Tenant>(spec, claims, status);
    let steps = |tenant: &Object<Tenant>| Tenant::create(tenant, &Facts::default()).steps;
    let realm = |name: &str, gone: bool| Step::Realm { name: name.into(), gone, deadline_seconds: 600 };
    // Named as the tenant, unless something else is said.
    let wanted = of(json!({"make_realm": true}), json!({}), json!(null));
    assert_eq!(steps(&wanted), [realm("web", false)]);
    assert_eq!(keys(&Tenant::create(&wanted, &Facts::default()).claims), ["realm.web"]);
    let named = of(json!({"make_realm": true, "realm": "x"}), json!({}), json!(null));
    assert_eq!(steps(&named), [realm("x", false)]);
    assert_eq!(steps(&of(json!({"realm": "x"}), json!({}), json!(null))), []);
    let made =
        of(json!({"make_realm": true}), json!({"realm_made": "web"}), json!({"realm": {"made": true}}));
    assert_eq!(steps(&made), []);
    // What was made stays; what was refused may be called otherwise.
    let changed = |old: &Object<Tenant>, spec: Value| {
        let errors = Tenant::update(old, &of(spec, json!({}), json!(null)), &Facts::default()).errors;
        fields(&errors).join(" ")
    };
    for old in [&wanted, &made] {
        assert_eq!(changed(old, json!({"make_realm": true, "realm": "y"})), "spec.realm");
        assert_eq!(changed(old, json!({})), "spec.make_realm");
        assert_eq!(changed(old, json!({"make_realm": true, "realm": "web", "description": "d"})), "");
    }
    let refused = of(json!({"make_realm": true}), json!({}), json!({"realm": {"problem": "there is one"}}));
    assert_eq!(changed(&refused, json!({"make_realm": true, "realm": "y"})), "");
    // It goes when that was asked for, and it is ours.
    let removed = |claims: Value| Tenant::remove(&of(json!({}), claims, json!(null))).steps;
    assert_eq!(removed(json!({"realm_made": "web"})), [Step::Release]);
    assert_eq!(removed(json!({"realm_goes": true})), [Step::Release]);
    assert_eq!(
        removed(json!({"realm_made": "web", "realm_goes": true})),
        [realm("web", true), Step::Release]
    );
}

#[test]
fn suspended_and_resumed() {
    let call = |verb: &str| Call { verb: verb.into(), ..Call::default() };
    let tenant = object::<Tenant>(json!({}));
    assert!(Tenant::act(&tenant, &call("resume")).is_err());
    let plan = Tenant::act(&tenant, &call("suspend")).unwrap();
    assert_eq!(plan.values["suspended"]["instances"], "stop");
    let kept = json!({"suspended": {"since": "2026-11-22T10:00:00Z", "instances": "keep"}});
    let mut tenant = stored_as::<Tenant>(json!({}), kept, json!(null));
    assert_eq!(Tenant::settled(&tenant), "suspended");
    Tenant::show(&mut tenant);
    assert_eq!(tenant.status.suspended.as_ref().unwrap().instances, "keep");
    assert_eq!(Tenant::act(&tenant, &call("resume")).unwrap().values["suspended"], json!(null));
}

#[test]
fn is_there_and_gone_without_a_node() {
    let tenant = object::<Tenant>(json!({}));
    assert_eq!(Tenant::create(&tenant, &Facts::default()).steps, []);
    assert_eq!(Tenant::remove(&tenant), Plan::release());
}
