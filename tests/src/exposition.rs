//! Reads what a server measures of itself as a stranger does: by the text format's own rules, and strictly.

use std::collections::{BTreeMap, BTreeSet};

/// Each series, as it stands in the text, and its value. What is not in order is a panic.
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "the text breaks off:\n{text}");
    let (mut families, mut helped, mut series) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(words) = line.strip_prefix("# TYPE ") {
            let (name, kind) = words.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
        } else if let Some(words) = line.strip_prefix("# HELP ") {
            helped.insert(words.split_once(' ').unwrap().0.to_owned());
        } else if !line.starts_with("# UNIT ") {
            let (named, value) = line.rsplit_once(' ').unwrap();
            let name = named.split('{').next().unwrap();
            let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
            assert!(name.starts_with("rhyzome_") && name.chars().all(letters), "{line}");
            let known = |family: &String| name.strip_prefix(family.as_str()).is_some_and(good_suffix);
            assert!(families.keys().any(known), "{line}: of no family");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(series.insert(named.to_owned(), value).is_none(), "{named} comes twice");
        }
    }
    assert_eq!(families.into_keys().collect::<BTreeSet<_>>(), helped);
    series
}

fn good_suffix(suffix: &str) -> bool {
    ["", "_total", "_info", "_bucket", "_sum", "_count"].contains(&suffix)
}
