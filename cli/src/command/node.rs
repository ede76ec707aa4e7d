//! What only nodes have.

use clap::{Arg, Command};

use super::{name, option};

/// Verbs beside those of all kinds.
pub(super) fn verbs() -> Vec<Command> {
    vec![
            Command::new("invite")
                .about("Print the line that makes a machine this node")
                .after_help(
                    "Makes the node if it is not there. The line is good once, and not for long.\n\nExamples:\n  \
                     rhyzome node invite rack1\n  \
                     rhyzome node invite sim --count 3 >sim.txt   # sim-1, sim-2, sim-3, a line each",
                )
                .arg(Arg::new("name").value_name("NAME").required(true).help("Its name"))
                .arg(
                    option("count", "NUMBER", "So many nodes: NAME-1, NAME-2, ...")
                        .value_parser(clap::value_parser!(u32).range(1..=100_000)),
                ),
            Command::new("revoke")
                .about("Accept nothing of a node any more, until it is invited and joins again")
                .after_help(
                    "For a machine that was stolen, or whose key may be elsewhere. Its guests go on.\n\n\
                     Examples:\n  rhyzome node revoke rack1\n  rhyzome node invite rack1",
                )
                .arg(name()),
            Command::new("guests")
                .about("All guests that run on it, whoever started them")
                .after_help("Example:\n  rhyzome node guests rack1")
                .arg(name()),
            drift(),
            Command::new("repair")
                .about("Say which machine is this node, after two have come with its identity")
                .after_help(
                    "Only records it: the agent of that machine is let in from now on, any other is refused. No guest \
                     is touched.\n`rhyzome node show NAME` has the machine that was refused.\n\nExample:\n  \
                     rhyzome node repair rack1 --machine 3f2a...",
                )
                .arg(name())
                .arg(option("machine", "ID", "The machine that is right").required(true)),
            Command::new("forget")
                .about("Forget who was refused as this node")
                .after_help(
                    "The machine that is the node stays it. Of two agents with one identity stop the wrong one first, \
                     then this lets the other come again.\n\nExample:\n  rhyzome node forget rack1",
                )
                .arg(name()),
    ]
}

/// `node drift`, and what may be decided on a difference.
fn drift() -> Command {
    let difference =
        || Arg::new("difference").value_name("ID").required(true).help("As `node drift NAME` shows it");
    let decide = |verb: &'static str, about: &'static str, more: &'static str| {
        let example = format!("{more}\n\nExample:\n  rhyzome node drift {verb} rack1 diff-0a1b2c3d4e");
        Command::new(verb).about(about).after_help(example).arg(name()).arg(difference())
    };
    Command::new("drift")
        .about("Where it is not as it was ordered, and what was put right")
        .after_help("Example:\n  rhyzome node drift rack1")
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(name())
        .subcommand(
            decide(
                "adopt",
                "Make a record of a guest that nobody ordered",
                "An orphan (this agent started it) becomes an instance, under its own id. A foreign guest becomes a \
                 line of `node guests`.\nThe guest itself is never touched.",
            )
            .arg(option("of", "TENANT", "Whose an orphan is to be; needed where its node does not know"))
            .arg(option("as", "NAME", "What it is to be called; else as it was")),
        )
        .subcommand(decide(
            "repair",
            "Have the agent put it right",
            "It writes its own files again, or makes a disk anew that is gone, without what was on it.",
        ))
        .subcommand(decide(
            "ignore",
            "Leave it as it is",
            "It is shown on, with who decided; `forget` takes that back.",
        ))
        .subcommand(decide(
            "forget",
            "Take back what was decided; or let an orphan go",
            "The agent drops the orders of an orphan: it runs on, and is not brought back when it ends.",
        ))
}
