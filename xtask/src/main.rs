//! Project commands: demo, test, bench, openapi, image.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::image;

/// Commands for those who work on Rhyzome.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds a guest image from Debian's own packages
    Image(image::Arguments),
}

fn main() -> ExitCode {
    let answer = match Cli::parse().command {
        Command::Image(arguments) => image::main(arguments),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: RUST_BACKTRACE may be set, and a backtrace helps nobody here.
            eprintln!("error: {}", error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "));
            ExitCode::FAILURE
        }
    }
}
