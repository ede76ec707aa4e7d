//! Hostile tokens against the code that verifies them in a real server: nothing is taken, and what is good is.

use std::fs;
use std::path::Path;

use rhyzome_tests::tokens::{Wanted, show};

/// In each run; `cargo xtask tokens` shows as many as one likes.
const MANY: u64 = 100_000;

fn seed() -> u64 {
    std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122)
}

#[test]
fn of_a_hundred_thousand_bad_tokens_none_counts() {
    let wanted = Wanted::new(seed(), MANY, 2);
    let shown = show(&wanted);
    println!("seed {}: {shown:#?}", wanted.seed);
    assert!(shown.wrong.is_empty(), "seed {}: {:#?}", wanted.seed, shown.wrong);
    assert_eq!(shown.all_refused() + shown.controls, MANY);
    assert_eq!(shown.controls, MANY / 500, "good ones among them, that count");
    assert!(
        shown.refused.len() == 18 && shown.refused.values().all(|count| *count > 30),
        "{:#?}",
        shown.refused
    );
    assert_eq!(shown.asked, 2, "where its keys are, and its keys: once, however many are invented");
    assert_eq!(shown.lured, 0, "nobody was called whom a token names");
}

/// What is found by looking for it: a server that takes tokens for somebody else.
#[test]
fn a_server_that_takes_too_much_is_found_out() {
    let wanted = Wanted { audiences: vec!["rhyzome", "shop"], ..Wanted::new(seed(), 20_000, 2) };
    let shown = show(&wanted);
    assert!(!shown.wrong.is_empty());
    for (number, story) in &shown.wrong {
        assert!(story.starts_with("Ok(true)") && story.contains("\"aud\""), "{number}: {story}");
    }
    // The seed and the number are all that it takes.
    let again = Wanted { first: shown.wrong[0].0, count: 1, ..wanted };
    assert_eq!(show(&again).wrong.len(), 1);
}

/// All code that has tests, in one text.
fn code(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            code(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn each_must_names_a_test_that_there_is() {
    let root = xtask::repository();
    let mut all = String::new();
    for folder in ["api-server/src/auth", "tests/tests"] {
        code(&root.join(folder), &mut all);
    }
    let page = fs::read_to_string(root.join("docs/tokens.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 15, "{} rows", rows.len());
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            assert!(all.contains(&format!("fn {name}(")), "there is no test `{name}`: {row}");
        }
    }
}
