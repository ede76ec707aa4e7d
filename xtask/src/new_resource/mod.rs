//! `cargo xtask new-resource`: all that a new kind needs, in its places; the rest follows from the registry's line.
//!
//! First everything is made up in memory, then refused or written: a name that is taken anywhere changes nothing,
//! and no file is ever written over.

mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{openapi, repository, run};
use words::Words;

/// Arguments of `cargo xtask new-resource`.
#[derive(Args)]
pub struct Arguments {
    /// The kind, in the singular: `bucket`, `mail-box`
    name: String,
    /// What its ids begin with [default: from the name]
    #[arg(long)]
    prefix: Option<String>,
    /// Nodes hold it: with its messages between server and agent, and its driver
    #[arg(long)]
    agent: bool,
}

/// Where a kind's own file is, and those that list all kinds.
const RESOURCES: &str = "api-server/src/resources";
const REGISTRY: &str = "api-server/src/resources/mod.rs";
const QUOTAS: &str = "api-server/src/resources/tenant.rs";
const STORIES: &str = "tests/tests/in_process/stories";
const STORY_LIST: &str = "tests/tests/in_process/stories/mod.rs";
const MESSAGES: &str = "proto/proto/rhyzome/v1";
const DRIVERS: &str = "node-agent/src/drivers";
const DRIVER_LIST: &str = "node-agent/src/drivers/mod.rs";
/// Where the list of drivers begins.
const LIST: &str = "const PLAIN: &[Line] = &[";

const RESOURCE: &str = include_str!("templates/resource.rs.txt");
const STORY: &str = include_str!("templates/story.rs.txt");
const HELD: &str = include_str!("templates/held.rs.txt");
const HELD_STORY: &str = include_str!("templates/held_story.rs.txt");
const PROTO: &str = include_str!("templates/kind.proto.txt");
const DRIVER: &str = include_str!("templates/driver.rs.txt");

/// What is to be written: files that are new, and lists with one line more.
#[derive(Debug, Default)]
pub struct Scaffold {
    new: Vec<(PathBuf, String)>,
    changed: Vec<(PathBuf, String)>,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let root = repository();
    let scaffold = Scaffold::of(&root, &arguments.name, arguments.prefix.as_deref(), arguments.agent)?;
    for file in scaffold.write(&root)? {
        println!("{}", file.display());
    }
    run::output(run::cargo().args(["fmt", "--all"]))?;
    // Compiles the server with the new kind; clients are made from the document.
    openapi::accept()?;
    run::output(run::cargo().args(["check", "--package", "rhyzome-tests", "--tests"]))?;
    println!(
        "\nIt compiles. Now say what it is: begin with its spec. `cargo xtask test in-process` asks what is missing."
    );
    Ok(())
}

impl Scaffold {
    /// For a kind of this name, in the tree at `root`; `agent`: nodes hold it.
    pub fn of(root: &Path, name: &str, prefix: Option<&str>, agent: bool) -> Result<Scaffold> {
        let mut words = Words::of(name)?;
        if let Some(prefix) = prefix {
            words.prefix = prefix.to_owned();
        }
        refuse_taken(root, &words)?;
        let mut scaffold = Scaffold::default();
        let files: &[_] = if agent {
            &[
                (RESOURCES, "rs", HELD),
                (STORIES, "rs", HELD_STORY),
                (DRIVERS, "rs", DRIVER),
                (MESSAGES, "proto", PROTO),
            ]
        } else {
            &[(RESOURCES, "rs", RESOURCE), (STORIES, "rs", STORY)]
        };
        for (folder, end, template) in files {
            let file = Path::new(folder).join(format!("{}.{end}", words.snake));
            scaffold.new.push((file, words.fill(template)));
        }
        scaffold.change(root, REGISTRY, |text| {
            let text = in_order(&text, "mod ", &words.fill("mod @snake@;"))?;
            before(&text, "    ])\n}", &words.fill("        erased::<@snake@::@Pascal@>(),\n"))
        })?;
        scaffold.change(root, QUOTAS, |text| {
            let (plural, field) = (words.plural.replace('-', " "), words.plural.replace('-', "_"));
            let field = format!(
                "    /// How many {plural}.\n    #[serde(default, skip_serializing_if = \"Option::is_none\")]\n    \
                 pub {field}: Option<u64>,\n"
            );
            let (start, end) =
                text.split_once("pub struct TenantQuota {").context("there is no TenantQuota")?;
            Ok(format!("{start}pub struct TenantQuota {{{}", before(end, "}\n", &field)?))
        })?;
        scaffold.change(root, STORY_LIST, |text| in_order(&text, "mod ", &words.fill("mod @snake@;")))?;
        if agent {
            scaffold.change(root, DRIVER_LIST, |text| {
                let text = in_order(&text, "pub mod ", &words.fill("pub mod @snake@;"))?;
                let (start, end) = text.split_once(LIST).context("there is no list of drivers")?;
                let line = words.fill("    crate::plain::driver::<@snake@::@Pascal@Driver>,\n");
                Ok(format!("{start}{LIST}{}", before(end, "];", &line)?))
            })?;
        }
        Ok(scaffold)
    }

    /// Writes all of it; which files. Nothing is written over that was not there when it was made up.
    pub fn write(self, root: &Path) -> Result<Vec<PathBuf>> {
        if let Some((file, _)) = self.new.iter().find(|(file, _)| root.join(file).exists()) {
            bail!("{} is there already: nothing was changed", file.display());
        }
        let mut written = Vec::new();
        for (file, text) in self.new.into_iter().chain(self.changed) {
            let path = root.join(&file);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            written.push(file);
        }
        Ok(written)
    }

    fn change(&mut self, root: &Path, file: &str, edit: impl FnOnce(String) -> Result<String>) -> Result<()> {
        let text = fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        self.changed.push((file.into(), edit(text).with_context(|| file.to_owned())?));
        Ok(())
    }
}

/// Words of kinds that are there are not given twice.
fn refuse_taken(root: &Path, words: &Words) -> Result<()> {
    let taken = [("kind", &words.kind), ("plural", &words.plural), ("prefix", &words.prefix)];
    for entry in fs::read_dir(root.join(RESOURCES)).context(RESOURCES)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for (what, word) in taken {
            if text.contains(&format!("        {what}: \"{word}\",")) {
                let way_out =
                    if what == "prefix" { "say another with --prefix" } else { "choose another name" };
                bail!("the {what} `{word}` is taken by {}: {way_out}", path.display());
            }
        }
    }
    Ok(())
}

/// One line more in the first run of lines that begin so, in alphabetical order.
fn in_order(text: &str, front: &str, line: &str) -> Result<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    if lines.contains(&line) {
        bail!("`{line}` is there already: nothing was changed");
    }
    let first = lines.iter().position(|one| one.starts_with(front));
    let first = first.with_context(|| format!("there is no line that begins with `{front}`"))?;
    let run = lines[first..].iter().take_while(|one| one.starts_with(front));
    let place = first + run.take_while(|one| **one < line).count();
    lines.insert(place, line);
    Ok(lines.join("\n") + "\n")
}

/// Something more, before the first place where `mark` stands.
fn before(text: &str, mark: &str, more: &str) -> Result<String> {
    let (start, end) = text.split_once(mark).with_context(|| format!("there is no `{}`", mark.trim()))?;
    Ok(format!("{start}{more}{mark}{end}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_line_goes_where_it_belongs() {
        let list = "//! Words.\n\nmod a;\nmod c;\n\nfn f() {}\n";
        assert_eq!(
            in_order(list, "mod ", "mod b;").unwrap(),
            "//! Words.\n\nmod a;\nmod b;\nmod c;\n\nfn f() {}\n"
        );
        assert!(in_order(list, "mod ", "mod z;").unwrap().contains("mod c;\nmod z;\n\nfn"));
        assert!(in_order(list, "mod ", "mod c;").unwrap_err().to_string().contains("is there already"));
        assert!(in_order("fn f() {}", "mod ", "mod c;").is_err());
        assert_eq!(before("a])b])", "])", "x").unwrap(), "ax])b])");
    }

    #[test]
    fn what_is_taken_is_refused_and_nothing_is_written() {
        let root = repository();
        let refused =
            |name: &str, prefix| format!("{:#}", Scaffold::of(&root, name, prefix, true).unwrap_err());
        assert!(refused("disk", None).contains("the kind `disk` is taken"));
        assert!(refused("bucket", Some("inst")).contains("say another with --prefix"));
        assert!(refused("Bucket", None).contains("cannot be a kind"));
        let scaffold = Scaffold::of(&root, "bucket", None, true).unwrap();
        let copy = tempfile::tempdir().unwrap();
        let there = copy.path().join(RESOURCES);
        fs::create_dir_all(&there).unwrap();
        fs::write(there.join("bucket.rs"), "mine").unwrap();
        assert!(scaffold.write(copy.path()).unwrap_err().to_string().contains("is there already"));
        assert_eq!(fs::read_to_string(there.join("bucket.rs")).unwrap(), "mine");
        assert!(![STORIES, DRIVERS, MESSAGES].iter().any(|folder| copy.path().join(folder).exists()));
    }
}
