//! The words of `rhyzome login` and `rhyzome logout`.

use clap::Command;

use super::{option, switch};

pub(super) fn login() -> Command {
    Command::new("login")
        .about("Log in at the server's OpenID provider, and keep the login")
        .after_help(
            "Examples:\n  rhyzome login --url https://api.example.com\n  rhyzome login --browser\n  \
             rhyzome login --profile acme --issuer https://id.example.com/realms/acme\n\n\
             The login is renewed by itself. It is kept in a file that only you can read, and used whenever no token is given.",
        )
        .arg(switch("browser", "In a browser on this machine; else with a code that is shown, in any browser"))
        .arg(option("with", "NAME", "Where, if the server names several places").conflicts_with("issuer"))
        .arg(option("issuer", "URL", "Where, if the server does not say: a tenant's own provider"))
        .arg(
            option("client-id", "ID", "As which client of it [default: rhyzome-cli]").requires("issuer"),
        )
}

pub(super) fn logout() -> Command {
    Command::new("logout")
        .about("Give a login back, and forget it")
        .after_help("Examples:\n  rhyzome logout\n  rhyzome logout --profile acme")
}
