//! The words of the command line, made from the document.

mod login;
mod node;
mod ssh;
mod totp;
mod wireguard;

use clap::{Arg, ArgAction, Command};
use rhyzome_client::{Choice, Kind, Kinds};

pub use self::ssh::JOIN;
use crate::fields::{Field, Form, fields};

const EXAMPLES: &str = "\
Examples:
  rhyzome image import tiny tiny.qcow2
  rhyzome instance create web --image tiny --user-data @init.sh --tag env=prod --wait
  rhyzome instance list
  rhyzome ssh web -l debian
  rhyzome instance stop web --wait
  rhyzome instance stop --tag env=prod
  rhyzome disk create data --size 10GiB
  rhyzome instance edit web --set disks.data.disk=data
  rhyzome instance restore web 3 --wait
  rhyzome node invite rack1
  rhyzome login --url https://api.example.com
  rhyzome --as anna token create laptop
  rhyzome vpn-network create laptop --make-key laptop.key
  rhyzome api GET /v1/whoami

The server and the token are found by themselves when a server runs on this machine, and after `rhyzome login`.
Else give --url and --token, or RHYZOME_URL and RHYZOME_TOKEN.";

/// The whole command line.
pub fn command(kinds: &Kinds) -> Command {
    let command = Command::new("rhyzome")
        .about("Instances, disks and networks on your own machines")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(globals());
    let command = kinds.all().iter().fold(command, |command, kind| command.subcommand(of_kind(kinds, kind)));
    let command = command.subcommand(jobs()).subcommand(events()).subcommand(audit());
    let command = command.subcommand(login::login()).subcommand(login::logout()).subcommand(totp::totp());
    let command = command.subcommand(ssh::ssh()).subcommand(ssh::join());
    command.subcommand(whoami()).subcommand(api())
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn globals() -> Vec<Arg> {
    let global = |arg: Arg| arg.global(true).help_heading("Server");
    vec![
        global(
            option("tenant", "TENANT", "Whose objects are meant")
                .short('t')
                .default_value("default")
                .env("RHYZOME_TENANT"),
        ),
        global(
            option("output", "FORMAT", "How to print")
                .short('o')
                .value_parser(["table", "json", "name"])
                .default_value("table"),
        ),
        global(option("url", "URL", "Where the API is").env("RHYZOME_URL")),
        global(option("token", "TOKEN", "The token to show").env("RHYZOME_TOKEN").hide_env_values(true)),
        global(
            option("as", "NAME", "Log in with a password, as NAME, whatever token there is")
                .env("RHYZOME_AS"),
        ),
        global(option("password-file", "FILE", "Holds the password; else it is asked for").requires("as")),
        global(
            option("otp", "CODE", "The code that your app shows, or a recovery code")
                .env("RHYZOME_OTP")
                .hide_env_values(true),
        ),
        global(option("profile", "NAME", "Which login of `rhyzome login` is meant").env("RHYZOME_PROFILE")),
        global(option("ca", "FILE", "PEM of the authority to believe").env("RHYZOME_CA")),
    ]
}

fn waiting() -> [Arg; 2] {
    [
        switch("wait", "Wait until it is done"),
        option("timeout", "TIME", "How long to wait at most")
            .default_value("10m")
            .value_parser(crate::units::seconds),
    ]
}

/// The filters of a list, with which a verb is meant for all that match.
pub const FILTERS: [&str; 4] = ["tag", "metadata", "phase", "name-prefix"];

fn names() -> Arg {
    Arg::new("name")
        .value_name("NAME")
        .required_unless_present_any(FILTERS)
        .conflicts_with_all(FILTERS)
        .num_args(1..)
        .help("Name or id; or say which ones by a filter")
}

fn filters() -> [Arg; 4] {
    [
        option("tag", "KEY=VALUE", "All with this tag").action(ArgAction::Append),
        option("metadata", "PATH=VALUE", "All with this metadata").action(ArgAction::Append),
        option("phase", "PHASE", "All in this phase"),
        option("name-prefix", "TEXT", "All whose name begins so"),
    ]
    .map(|filter| filter.help_heading("Which ones"))
}

fn name() -> Arg {
    Arg::new("name").value_name("NAME").required(true).help("Name or id")
}

fn of_kind(kinds: &Kinds, kind: &Kind) -> Command {
    let mut command = Command::new(kind.kind.clone())
        .about(kind.about.clone())
        .visible_alias(kind.plural.clone())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(list(kind))
        .subcommand(Command::new("show").about("Show one").visible_alias("get").arg(name()))
        .subcommand(create(kinds, kind))
        .subcommand(edit(kinds, kind))
        .subcommand(delete(kind))
        .subcommand(Command::new("revisions").about("Every version it had, by whom, when").arg(name()))
        .subcommand(restore())
        .subcommand(Command::new("access").about("Who may do what with it, and why").arg(name()));
    if kind.of_tenants && kind.of_operators {
        command = command.arg(switch("global", "The ones that all tenants may use").global(true));
    }
    if kind.more.iter().any(|more| more == "rendered") {
        let about = "Exactly what its node applies";
        command = command.subcommand(Command::new("rendered").about(about).arg(name()));
    }
    let special = special(kinds, kind);
    for action in kind.actions.iter().filter(|action| special.iter().all(|s| s.get_name() != action.verb)) {
        command = command.subcommand(
            Command::new(action.verb.clone())
                .about(action.about.clone())
                .arg(names())
                .args(filters())
                .arg(switch("hard", "At once, not gracefully").conflicts_with("deadline"))
                .arg(
                    option("deadline", "TIME", "How long the graceful way may take")
                        .value_parser(crate::units::seconds),
                )
                .arg(switch("supersede", "Cancel what waits to be done with it"))
                .args(action.choices.iter().map(choice))
                .args(waiting()),
        );
    }
    command.subcommands(special)
}

fn choice(choice: &Choice) -> Arg {
    Arg::new(choice.field.clone())
        .long(choice.field.replace('_', "-"))
        .value_name("WORD")
        .help(choice.about.clone())
        .value_parser(clap::builder::PossibleValuesParser::new(choice.words.clone()))
        .default_value(choice.words.first().cloned().unwrap_or_default())
}

fn delete(kind: &Kind) -> Command {
    let command =
        Command::new("delete").about("Delete some").visible_alias("rm").arg(names()).args(filters());
    let command = match kind.kind.as_str() {
        "tenant" => command
            .arg(switch("cascade", "And all that it has; this cannot be undone").conflicts_with_all(FILTERS))
            .arg(
                switch("delete-realm", "And its realm at the identity provider, if Rhyzome has made it")
                    .conflicts_with_all(FILTERS),
            ),
        _ => command,
    };
    command.args(waiting())
}

/// What only some kinds have.
fn special(kinds: &Kinds, kind: &Kind) -> Vec<Command> {
    match kind.kind.as_str() {
        "image" => vec![
            Command::new("import")
                .about("Make an image and upload its content")
                .after_help("Example:\n  rhyzome image import tiny build/tiny.qcow2 --global")
                .arg(Arg::new("name").value_name("NAME").required(true).help("Its name"))
                .arg(Arg::new("file").value_name("FILE").required(true).help("A qcow2 file"))
                .args(fields(kinds, &kind.spec).iter().map(flag))
                .args(common())
                .arg(waiting()[1].clone()),
        ],
        "snapshot" => vec![
            Command::new("download")
                .about("Fetch its bytes into a new file, and prove them")
                .after_help(
                    "What breaks off goes on where it was, also when you call it again.\n\nExample, back to what it was:\n  \
                     rhyzome snapshot create monday --disk web-root --wait\n  \
                     rhyzome snapshot download monday monday.qcow2\n  \
                     rhyzome image import monday monday.qcow2\n  \
                     rhyzome instance create web2 --image monday",
                )
                .arg(name())
                .arg(Arg::new("file").value_name("FILE").required(true).help("A qcow2 that is not there yet")),
        ],
        "tenant" => vec![
            Command::new("quota")
                .about("What it uses, and what it may use")
                .after_help("Example of a limit:\n  rhyzome tenant edit acme --set quota.vcpus=64")
                .arg(Arg::new("name").value_name("NAME").help("Its name; --tenant if not given")),
        ],
        "node" => node::verbs(),
        "vpn-network" | "wireguard-peer" => vec![wireguard::config(&kind.kind)],
        "webhook" => vec![
            Command::new("test").about("Send a test message, and tell what came of it").arg(name()),
            Command::new("deliveries").about("The last tries to deliver, the newest first").arg(name()),
            Command::new("redeliver")
                .about("Send once more what was sent before")
                .arg(name())
                .arg(Arg::new("number").value_name("NUMBER").required(true).help("As `deliveries` shows it")),
        ],
        "instance" => vec![
            ssh::tunnel(),
            Command::new("console")
                .about("Its serial console; Ctrl-] leaves")
                .arg(name())
                .arg(switch("show", "Print what comes and leave when nothing more does")),
            Command::new("log")
                .about("What it has printed on its serial console")
                .after_help(
                    "Examples:\n  rhyzome instance log web --tail 20\n  rhyzome instance log web --follow",
                )
                .arg(name())
                .arg(switch("follow", "Go on as it prints; Ctrl-C leaves").short('f'))
                .arg(
                    option("tail", "LINES", "Only the last ones, so many")
                        .value_parser(clap::value_parser!(u64)),
                ),
        ],
        _ => Vec::new(),
    }
}

fn list(kind: &Kind) -> Command {
    let mut command = Command::new("list")
        .about(format!("List {}", kind.plural))
        .visible_alias("ls")
        .arg(option("tag", "KEY=VALUE", "Only with this tag").action(ArgAction::Append))
        .arg(option("metadata", "PATH=VALUE", "Only with this metadata").action(ArgAction::Append))
        .arg(option("phase", "PHASE", "Only in this phase"))
        .arg(option("name-prefix", "TEXT", "Only those whose name begins so"))
        .arg(switch("by-name", "In the order of names, not of age"))
        .arg(option("limit", "NUMBER", "At most so many").value_parser(clap::value_parser!(usize)));
    if kind.of_tenants {
        command =
            command.arg(switch("all-tenants", "Those of all tenants (operators)").conflicts_with("by-name"));
    }
    command
}

/// What every object has, and ways to set what has no flag.
fn common() -> Vec<Arg> {
    vec![
        option("tag", "KEY=VALUE", "A tag; may be repeated").action(ArgAction::Append),
        option("metadata", "JSON", "Your own data; @FILE reads a file"),
        bool_flag("protected", "Refuse its deletion"),
        option("spec", "JSON", "The spec, or a part of it; @FILE reads a file"),
        option("set", "PATH=VALUE", "A field by its path: nics.lan.address=10.0.0.9; may be repeated")
            .action(ArgAction::Append),
    ]
}

fn bool_flag(name: impl Into<String>, help: impl Into<String>) -> Arg {
    let name: String = name.into();
    Arg::new(name.clone())
        .long(name)
        .value_name("BOOL")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(["true", "false"])
        .help(help.into())
}

fn flag(field: &Field) -> Arg {
    let mut help = field.about.clone();
    if !field.words.is_empty() {
        help.push_str(&format!(" [words: {}]", field.words.join(", ")));
    }
    if field.long {
        help.push_str(" (@FILE reads a file)");
    }
    if field.change == "needs-stop" {
        help.push_str(" [changes at the next stop]");
    }
    if field.form == Form::Bool {
        return bool_flag(field.flag.clone(), help).id(id(field)).help_heading("Spec");
    }
    let value = match field.form {
        Form::Size => "SIZE",
        Form::Seconds => "TIME",
        Form::Integer | Form::Number => "NUMBER",
        _ => "TEXT",
    };
    let mut arg =
        Arg::new(id(field)).long(field.flag.clone()).value_name(value).help(help).help_heading("Spec");
    if let Some(alias) = &field.alias {
        arg = arg.alias(alias.clone());
    }
    arg.action(if field.form == Form::Texts { ArgAction::Append } else { ArgAction::Set })
}

/// Under this name clap keeps a field's value: apart from our own flags.
pub fn id(field: &Field) -> String {
    format!("spec.{}", field.property)
}

fn create(kinds: &Kinds, kind: &Kind) -> Command {
    let command = Command::new("create").about(format!("Make {} {}", article(&kind.kind), kind.kind));
    let command = match kind.kind.as_str() {
        "vpn-network" | "wireguard-peer" => wireguard::with_keys(command, &kind.kind),
        _ => command,
    };
    command
        .arg(Arg::new("name").value_name("NAME").help("Its name; made up if not given"))
        .args(fields(kinds, &kind.spec).iter().map(flag))
        .args(common())
        .args(waiting())
}

fn edit(kinds: &Kinds, kind: &Kind) -> Command {
    Command::new("edit")
        .about("Change one")
        .after_help("What is not said stays. --unset PATH takes a field of the spec back.")
        .arg(name())
        .arg(option("rename", "NAME", "A new name"))
        .args(fields(kinds, &kind.spec).iter().filter(|field| field.change != "immutable").map(flag))
        .args(common())
        .arg(option("untag", "KEY", "Take a tag away; may be repeated").action(ArgAction::Append))
        .arg(option("unset", "PATH", "Take a field back; may be repeated").action(ArgAction::Append))
        .args(waiting())
}

fn restore() -> Command {
    Command::new("restore")
        .about("Make it what it was at a version")
        .after_help("Name, tags, metadata and spec; `revisions` shows the versions that it had.")
        .arg(name())
        .arg(
            Arg::new("version")
                .value_name("VERSION")
                .required(true)
                .value_parser(clap::value_parser!(i64))
                .help("The version"),
        )
        .args(waiting())
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) || word.starts_with("ssh") { "an" } else { "a" }
}

fn jobs() -> Command {
    let id = || Arg::new("id").value_name("JOB").required(true).help("Id of the job");
    Command::new("job")
        .about("What is being done, and what was")
        .visible_alias("jobs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(switch("global", "Those of all tenants, and on what operators own").global(true))
        .subcommand(
            Command::new("list")
                .about("List jobs")
                .visible_alias("ls")
                .arg(option("resource", "ID", "Only those on this object"))
                .arg(option("state", "STATE", "Only in this state"))
                .arg(switch("dead", "Only those that failed for good: retry, skip or undo them"))
                .arg(
                    option("limit", "NUMBER", "At most so many")
                        .default_value("50")
                        .value_parser(clap::value_parser!(usize)),
                ),
        )
        .subcommand(Command::new("show").about("Show one with its steps").visible_alias("get").arg(id()))
        .subcommand(Command::new("log").about("Each step as it happens, until it is done").arg(id()))
        .subcommand(Command::new("wait").about("Wait until it is done").arg(id()).arg(waiting()[1].clone()))
        .subcommand(Command::new("cancel").about("Cancel it and take back what it did").arg(id()))
        .subcommand(Command::new("retry").about("Do it again, as a new job").arg(id()).args(waiting()))
        .subcommand(
            Command::new("skip").about("Leave what it left as it is, or stop waiting for a node").arg(id()),
        )
        .subcommand(
            Command::new("undo").about("Take back what it wanted, as a new job").arg(id()).args(waiting()),
        )
}

fn everywhere() -> Arg {
    switch("global", "Of all tenants, and of what operators own")
}

fn events() -> Command {
    Command::new("events")
        .about("What happened, and with --follow what happens")
        .after_help(
            "Examples:\n  rhyzome events --since 1h\n  rhyzome events --follow --kind instance -o json",
        )
        .arg(switch("follow", "Go on as it happens; after a break where it was").short('f'))
        .arg(
            option("since", "TIME", "How long ago, a time, or the number of an entry; -20 is the last 20")
                .allow_hyphen_values(true),
        )
        .arg(option("kind", "KIND", "Only on objects of this kind"))
        .arg(option("resource", "ID", "Only on this object"))
        .arg(option("class", "CLASS", "Only these: write, job, phase, denied, anonymous, system"))
        .arg(everywhere())
}

fn audit() -> Command {
    Command::new("audit")
        .about("Who did what, and who was denied what; the newest first")
        .after_help("`rhyzome-api audit verify`, where the server is, proves that nothing of it was changed.")
        .arg(option("actor", "NAME", "Only by this one"))
        .arg(option("resource", "ID", "Only on this object"))
        .arg(option("kind", "KIND", "Only on objects of this kind"))
        .arg(option("verb", "VERB", "Only this"))
        .arg(option("outcome", "OUTCOME", "Only with this outcome: accepted, done, denied"))
        .arg(option("since", "TIME", "How long ago, or a time"))
        .arg(option("until", "TIME", "How long ago, or a time"))
        .arg(
            option("limit", "NUMBER", "At most so many")
                .default_value("50")
                .value_parser(clap::value_parser!(usize)),
        )
        .arg(everywhere())
}

fn whoami() -> Command {
    Command::new("whoami").about("Who I am, and what I may do here")
}

fn api() -> Command {
    Command::new("api")
        .about("Any call of the API")
        .after_help(
            "Examples:\n  rhyzome api GET /v1\n  rhyzome api PATCH /v1/nodes/rack1 '{\"spec\": {\"cordoned\": true}}'",
        )
        .arg(Arg::new("method").required(true).value_name("METHOD").help("GET, POST, PATCH, PUT or DELETE"))
        .arg(Arg::new("path").required(true).value_name("PATH").help("/v1/..."))
        .arg(Arg::new("body").value_name("JSON").help("The body; @FILE reads a file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command(&Kinds::known()).debug_assert();
    }

    #[test]
    fn every_kind_has_its_verbs() {
        let kinds = Kinds::known();
        let command = command(&kinds);
        for kind in kinds.all() {
            let of_kind = command.find_subcommand(&kind.kind).unwrap();
            for verb in ["list", "show", "create", "edit", "delete", "revisions", "restore", "access"] {
                assert!(of_kind.find_subcommand(verb).is_some(), "{} {verb}", kind.kind);
            }
            for action in &kind.actions {
                assert!(of_kind.find_subcommand(&action.verb).is_some(), "{} {}", kind.kind, action.verb);
            }
        }
    }
}
