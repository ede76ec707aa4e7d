//! Which paths a Rust file names: its use-trees, taken apart, and the paths within its code; `crate`, `self` and
//! `super` resolved. Comments, texts and unit tests do not count.

/// All paths that `text` names, each as `crate::store::Store` or `sqlx::query`. `module` is the file's own.
pub fn named(text: &str, module: &[String]) -> Vec<String> {
    let tokens = without_tests(tokens(text));
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == "use" {
            at = tree(&tokens, at + 1, &mut Vec::new(), &mut found);
        } else if is_name(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::") {
            let mut path = vec![tokens[at].clone()];
            while tokens.get(at + 1).is_some_and(|t| t == "::")
                && tokens.get(at + 2).is_some_and(|t| is_name(t))
            {
                path.push(tokens[at + 2].clone());
                at += 2;
            }
            found.push(path);
        }
        at += 1;
    }
    found.into_iter().map(|path| resolved(&path, module)).collect()
}

/// The module that a file is: `["store", "db"]` for `store/db.rs`.
pub fn module(below_src: &str) -> Vec<String> {
    let path = below_src.trim_end_matches(".rs");
    let parts = path.split('/').map(str::to_owned);
    parts.filter(|part| !matches!(part.as_str(), "mod" | "lib" | "main")).collect()
}

/// One use-tree from `at`; the index of what ends it.
fn tree(tokens: &[String], mut at: usize, front: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = front.len();
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => {
                loop {
                    at = tree(tokens, at + 1, front, found);
                    if tokens.get(at).is_none_or(|token| token != ",") {
                        break;
                    }
                }
                front.truncate(depth);
                return at + 1;
            }
            "::" => {}
            "as" => at += 1,
            "," | "}" | ";" => break,
            name => front.push(name.to_owned()),
        }
        at += 1;
    }
    if front.len() > depth {
        found.push(front.clone());
    }
    front.truncate(depth);
    at
}

fn resolved(path: &[String], module: &[String]) -> String {
    let mut base: Option<Vec<String>> = None;
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match (first.as_str(), &mut base) {
            ("crate", None) => base = Some(Vec::new()),
            ("self", None) => base = Some(module.to_vec()),
            ("super", None) => base = Some(module[..module.len().saturating_sub(1)].to_vec()),
            ("super", Some(base)) => drop(base.pop()),
            _ => break,
        }
        rest = others;
    }
    let front = base.into_iter().flat_map(|base| std::iter::once("crate".to_owned()).chain(base));
    front.chain(rest.iter().cloned()).collect::<Vec<_>>().join("::")
}

/// Drops what stands under `#[cfg(test)]`: an item up to its `;` or its closing brace.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(mark.len()).eq(mark) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let mut depth = 0_i32;
        for token in &tokens[at..] {
            at += 1;
            depth += i32::from(token == "{") - i32::from(token == "}");
            if depth == 0 && (token == ";" || token == "}") {
                break;
            }
        }
    }
    kept
}

fn is_name(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
}

/// Names, `::` and single signs; comments and texts left out.
fn tokens(text: &str) -> Vec<String> {
    let bytes: Vec<char> = text.chars().collect();
    let is_word = |at: usize| bytes.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let mut all = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let next = bytes.get(at + 1).copied();
        let begin = at;
        match bytes[at] {
            '/' if next == Some('/') => at = end(&bytes, at, "\n"),
            '/' if next == Some('*') => at = end(&bytes, at + 2, "*/"),
            'r' if matches!(next, Some('"' | '#')) && raw(&bytes, at).is_some() => {
                at = raw(&bytes, at).unwrap_or(bytes.len());
            }
            '"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != '"' {
                    at += if bytes[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A letter, not a lifetime.
            '\'' if next == Some('\\') => at = end(&bytes, at + 3, "'"),
            '\'' if bytes.get(at + 2) == Some(&'\'') => at += 3,
            ':' if next == Some(':') => {
                all.push("::".to_owned());
                at += 2;
            }
            c if c.is_whitespace() => at += 1,
            _ if is_word(at) => {
                while is_word(at) {
                    at += 1;
                }
                all.push(bytes[begin..at].iter().collect());
            }
            c => {
                all.push(c.to_string());
                at += 1;
            }
        }
    }
    all
}

/// Behind the next `mark`.
fn end(text: &[char], from: usize, mark: &str) -> usize {
    let mark: Vec<char> = mark.chars().collect();
    let found = text.get(from..).and_then(|rest| rest.windows(mark.len()).position(|part| part == mark));
    found.map_or(text.len(), |found| from + found + mark.len())
}

/// Behind a raw text that begins at `at`; none if it is a name like `r#type`.
fn raw(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at + 1..].iter().take_while(|c| **c == '#').count();
    (text.get(at + 1 + hashes) == Some(&'"'))
        .then(|| end(text, at + 2 + hashes, &format!("\"{}", "#".repeat(hashes))))
}
