//! The words of `rhyzome ssh`, and of what it is made of.

use clap::{Arg, ArgAction, Command, value_parser};

use super::{name, option, switch};

/// Joins standard input and output to a socket of `rhyzome ssh`: what its ssh runs.
pub const JOIN: &str = "ssh-join";

pub(super) fn ssh() -> Command {
    Command::new("ssh")
        .about("Log in to an instance, by a certificate that is made for it")
        .after_help(
            "Examples:\n  rhyzome ssh web -l debian\n  rhyzome ssh web -l root -- systemctl status nginx\n  \
             rhyzome ssh web -l debian --option LocalForward='8080 localhost:80'\n\n\
             The way goes through the API and the instance's node: it needs no address that can be reached from here. Nobody \
             is asked whether the host is the right one: its own certificate says so. Whoever may `instance:ssh` gets in. \
             This machine's `ssh` is run; its exit status is ours.",
        )
        .arg(name())
        .arg(option("login", "USER", "As this user of the instance; without it: as ssh itself would").short('l'))
        .arg(port())
        .arg(option("address", "ADDRESS", "Go to this address, not through the API: over a VPN"))
        .arg(option("option", "KEY=VALUE", "For ssh, as its -o; may be repeated").action(ArgAction::Append))
        .arg(switch("verbose", "Let ssh say what it does").short('v'))
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(0..)
                .last(true)
                .help("Run this there, and nothing else"),
        )
}

/// For ssh, not for people.
pub(super) fn join() -> Command {
    Command::new(JOIN).hide(true).arg(Arg::new("socket").required(true))
}

/// A port of an instance, for other programs.
pub(super) fn tunnel() -> Command {
    Command::new("tunnel")
        .about("Join a TCP port of it to standard input and output: a ProxyCommand")
        .after_help(
            "Example of a line in ~/.ssh/config:\n  ProxyCommand rhyzome instance tunnel web --port %p",
        )
        .arg(name())
        .arg(port())
}

fn port() -> Arg {
    option("port", "PORT", "Where its sshd listens")
        .short('p')
        .default_value("22")
        .value_parser(value_parser!(u16))
}
