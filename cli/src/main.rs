//! The command line of Rhyzome.
//!
//! It is made from the locked API document: a kind that is there has its verbs, flags and actions here,
//! without a line of code. What the API has beside kinds (jobs, uploads, invitations, consoles) has files of
//! its own in `run/`.

/// Prints a line. Whoever has read enough (`rhyzome ... | head -1`) ends us, quietly.
macro_rules! say {
    ($($what:tt)*) => { $crate::output::write_line(format_args!($($what)*)) };
}

mod command;
mod fields;
mod output;
mod profiles;
mod run;
mod settings;
mod terminal;
mod units;
mod wait;

use std::process::ExitCode;

use rhyzome_client::{Error, Kinds};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let kinds = Kinds::known();
    let matches = command::command(&kinds).get_matches();
    let surroundings = settings::Surroundings::of_process();
    match run::run(&kinds, &matches, &surroundings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rhyzome: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("  {hint}");
            }
            ExitCode::from(if error.is::<run::Usage>() { 2 } else { 1 })
        }
    }
}

/// What to do next.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    match error.downcast_ref::<Error>()? {
        Error::Unreachable { .. } => Some(
            "is the server running? `rhyzome-api` starts one; --url or RHYZOME_URL says where another one is",
        ),
        Error::Unexpected { .. } => Some("is this the address of a Rhyzome API?"),
        Error::Problem(problem) => match problem.word() {
            "unauthenticated" => Some(
                "`rhyzome login`; or give a token: --token, RHYZOME_TOKEN, or the folder of a server: RHYZOME_HOME",
            ),
            "second-factor" => Some(
                "--otp CODE shows a code (RHYZOME_OTP); `rhyzome totp enrol` makes codes; `rhyzome token create` makes a token, \
                 which needs none",
            ),
            "protected" => Some("`rhyzome <kind> edit NAME --protected=false` takes the protection away"),
            "no-capacity" => {
                Some("`rhyzome node list` shows the nodes; `rhyzome node invite NAME` brings another one")
            }
            "stale" => Some("somebody else changed it meanwhile: look at it again"),
            _ => None,
        },
        _ => None,
    }
}
