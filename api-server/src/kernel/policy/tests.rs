use super::*;
use crate::kernel::role::{BUNDLES, bundle};

fn scopes(texts: &[&str]) -> Vec<Permission> {
    Permission::all(texts.iter().copied())
}

fn role(name: &str, area: Area) -> Grant {
    let bundle = bundle(name).unwrap();
    Grant {
        why: name.into(),
        scopes: scopes(bundle.scopes),
        except: scopes(bundle.except),
        area,
        ..Grant::default()
    }
}

fn grant(texts: &[&str], area: Area) -> Grant {
    Grant { why: texts.join(" "), scopes: scopes(texts), area, ..Grant::default() }
}

fn deny(texts: &[&str], area: Area) -> Grant {
    Grant { deny: true, ..grant(texts, area) }
}

fn access(grants: Vec<Grant>) -> Access {
    Access { grants, limit: None }
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn core(kind: &str, tenant: &str, id: &str, of: &[(&str, &str)]) -> ResourceCore {
    ResourceCore {
        kind: kind.into(),
        tenant: tenant.into(),
        id: id.into(),
        tags: tags(of),
        ..ResourceCore::default()
    }
}

fn may(access: &Access, verb: &str, core: &ResourceCore) -> bool {
    access.decide(verb, &Thing::of(core, &core.tenant)).is_allowed()
}

#[test]
fn nothing_is_allowed_unless_granted() {
    let web = core("instance", "acme", "inst_1", &[]);
    assert!(!may(&Access::default(), "get", &web));
    assert_eq!(Access::default().entry("list", "instance", "acme"), Entry::Hidden);
    for bundle in BUNDLES {
        let access = access(vec![role(bundle.name, Area::tenant("acme"))]);
        for other in [core("instance", "beta", "inst_2", &[]), core("node", "", "node_1", &[])] {
            assert!(!may(&access, "get", &other), "{} sees {other:?}", bundle.name);
        }
    }
}

#[test]
fn each_bundle_gives_what_it_says() {
    let cases = [
        ("owner", "member", "create", true),
        ("owner", "instance", "delete", true),
        ("editor", "instance", "stop", true),
        ("editor", "member", "get", true),
        ("editor", "member", "create", false),
        ("editor", "binding", "delete", false),
        ("viewer", "disk", "list", true),
        ("viewer", "instance", "console", false),
        ("viewer", "disk", "update", false),
        ("billing", "quota", "get", true),
        ("billing", "instance", "get", false),
    ];
    for (name, kind, verb, wanted) in cases {
        let access = access(vec![role(name, Area::tenant("acme"))]);
        assert_eq!(may(&access, verb, &core(kind, "acme", "x_1", &[])), wanted, "{name} {kind}:{verb}");
    }
}

#[test]
fn a_denial_stands_over_every_grant() {
    let prod = Area { tags: tags(&[("env", "prod")]), ..Area::tenant("acme") };
    let access = access(vec![role("owner", Area::tenant("acme")), deny(&["*:delete"], prod)]);
    assert!(may(&access, "delete", &core("disk", "acme", "disk_1", &[])));
    let kept = core("disk", "acme", "disk_2", &[("env", "prod")]);
    assert!(may(&access, "get", &kept) && !may(&access, "delete", &kept));
    let forgotten = Thing { tags: None, ..Thing::of(&kept, "acme") };
    assert!(!access.decide("delete", &forgotten).is_allowed(), "what nobody knows is denied");
    assert_eq!(access.decide("delete", &Thing::of(&kept, "acme")).why(), "*:delete");
}

#[test]
fn a_limit_takes_away_and_never_gives() {
    let limit = grant(&["instance:*"], Area { object: Some("inst_1".into()), ..Area::default() });
    let limited = |grants| Access { grants, limit: Some(limit.clone()) };
    let all = limited(vec![role("owner", Area::tenant("acme"))]);
    assert!(may(&all, "stop", &core("instance", "acme", "inst_1", &[])));
    assert!(!may(&all, "stop", &core("instance", "acme", "inst_2", &[])));
    assert!(!may(&all, "get", &core("disk", "acme", "inst_1", &[])));
    assert!(!may(&limited(Vec::new()), "get", &core("instance", "acme", "inst_1", &[])));
    assert_eq!(all.narrow("list", "instance", "acme"), Narrow::Objects(vec!["inst_1".into()]));
    assert_eq!(all.entry("list", "disk", "acme"), Entry::Refused);
    assert_eq!(all.entry("get", "disk", "acme"), Entry::Hidden);
}

#[test]
fn who_may_not_even_see_it_does_not_come_in() {
    let viewer = access(vec![role("viewer", Area::tenant("acme"))]);
    assert_eq!(viewer.entry("create", "disk", "acme"), Entry::Refused);
    assert_eq!(viewer.entry("delete", "disk", "acme"), Entry::Open, "the object decides");
    for verb in ["get", "list", "create", "stop"] {
        assert_eq!(viewer.entry(verb, "instance", "beta"), Entry::Hidden);
        assert_eq!(viewer.entry(verb, "node", ""), Entry::Hidden);
    }
    let billing = access(vec![role("billing", Area::tenant("acme"))]);
    assert_eq!(billing.entry("get", "quota", "acme"), Entry::Open);
    assert_eq!(viewer.entry("get", "quota", "acme"), Entry::Open);
    assert_eq!(billing.entry("watch", "event", "acme"), Entry::Refused);
}

#[test]
fn lists_are_narrowed_to_what_can_be_seen() {
    let tag = |value: &str| Area { tags: tags(&[("env", value)]), ..Area::tenant("acme") };
    let object = |id: &str| Area { object: Some(id.into()), ..Area::tenant("acme") };
    let narrow = |areas: Vec<Area>| {
        access(areas.into_iter().map(|area| role("viewer", area)).collect()).narrow("list", "disk", "acme")
    };
    assert_eq!(narrow(vec![Area::tenant("acme"), tag("dev")]), Narrow::Whole);
    assert_eq!(narrow(vec![object("a"), object("b")]), Narrow::Objects(vec!["a".into(), "b".into()]));
    assert_eq!(narrow(vec![tag("dev")]), Narrow::Labels(vec![("tag.env".into(), "dev".into())]));
    assert_eq!(narrow(vec![tag("dev"), object("a")]), Narrow::Each);
    let denied = access(vec![role("viewer", Area::tenant("acme")), deny(&["disk:list"], tag("prod"))]);
    assert_eq!(denied.narrow("list", "disk", "acme"), Narrow::Each);
    assert_eq!(denied.narrow("list", "network", "acme"), Narrow::Whole);
    assert!(!denied.sees_all("acme"));
    assert!(access(vec![role("viewer", Area::tenant("acme"))]).sees_all("acme"));
}

#[test]
fn nobody_gives_more_than_they_have() {
    let owner = access(vec![role("owner", Area::tenant("acme"))]);
    for bundle in BUNDLES {
        assert_eq!(owner.can_give(&[role(bundle.name, Area::tenant("acme"))]), Ok(()), "{}", bundle.name);
        assert!(owner.can_give(&[role(bundle.name, Area::tenant("beta"))]).is_err());
        assert!(owner.can_give(&[role(bundle.name, Area::default())]).is_err());
    }
    let editor = access(vec![role("editor", Area::tenant("acme"))]);
    assert!(editor.can_give(&[role("owner", Area::tenant("acme"))]).is_err());
    assert!(editor.can_give(&[grant(&["member:*"], Area::tenant("acme"))]).is_err());
    assert_eq!(editor.can_give(&[role("editor", Area::tenant("acme"))]), Ok(()));
    assert_eq!(editor.can_give(&[grant(&["disk:*"], Area::tenant("acme"))]), Ok(()));
    let mut denied = owner.clone();
    denied.grants.push(deny(&["disk:delete"], Area::tenant("acme")));
    assert!(denied.can_give(&[role("editor", Area::tenant("acme"))]).is_err());
    assert_eq!(denied.can_give(&[grant(&["network:*"], Area::tenant("acme"))]), Ok(()));
    let dev = Area { tags: tags(&[("env", "dev")]), ..Area::tenant("acme") };
    let some = access(vec![role("editor", dev.clone())]);
    assert_eq!(some.can_give(&[role("editor", dev)]), Ok(()));
    assert!(some.can_give(&[role("editor", Area::tenant("acme"))]).is_err());
}

#[test]
fn operators_are_those_whom_nothing_limits() {
    assert!(access(vec![role("operator", Area::default())]).is_operator());
    assert!(!access(vec![role("operator", Area::tenant("acme"))]).is_operator());
    let limited = Access {
        grants: vec![role("operator", Area::default())],
        limit: Some(grant(&["node:get"], Area::default())),
    };
    assert!(
        !limited.is_operator() && limited.touches("get", "node", "") && !limited.touches("get", "tenant", "")
    );
}

#[test]
fn what_is_ones_own_is_ones_own() {
    let own = Area { kinds: vec!["ssh-key".into()], owner: Some("usr_1".into()), ..Area::tenant("acme") };
    let access = access(vec![role("billing", Area::tenant("acme")), grant(&["ssh-key:*"], own)]);
    let mut key = core("ssh-key", "acme", "key_1", &[]);
    key.owner = "usr_1".into();
    assert!(may(&access, "delete", &key));
    key.owner = "usr_2".into();
    assert!(!may(&access, "get", &key));
    let labels = vec![(OWNER_LABEL.to_owned(), "usr_1".to_owned())];
    assert_eq!(access.narrow("list", "ssh-key", "acme"), Narrow::Labels(labels));
}
