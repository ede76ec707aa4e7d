//! The words of `rhyzome totp`.

use clap::{Arg, Command};

pub(super) fn totp() -> Command {
    let one = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).value_name(value).required(true).help(help)
    };
    Command::new("totp")
        .about("A second factor beside a password: codes of an app")
        .after_help(
            "Examples:\n  rhyzome --as anna totp enrol\n  rhyzome --as anna totp confirm 123456\n  \
             rhyzome --as anna --otp 123456 token create laptop\n  rhyzome totp reset anna\n\n\
             Each code is good for one call. A token that was made with one needs none.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("enrol").about("Make a key, and show it to an app; it counts when it is confirmed"),
        )
        .subcommand(
            Command::new("confirm")
                .about("Show that the app has the key; answers codes for when the app is gone")
                .arg(one("code", "CODE", "The six digits that the app shows")),
        )
        .subcommand(Command::new("show").about("Whether there is one, and how many recovery codes are left"))
        .subcommand(Command::new("drop").about("Do without one again"))
        .subcommand(
            Command::new("reset")
                .about("Take somebody's away, who has lost their app and all recovery codes (operators)")
                .arg(one("name", "USER", "Name or id of the user")),
        )
}
