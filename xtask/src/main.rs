//! Project commands: demo, test, bench, sim, tokens, image, openapi.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    bench, demo, fuzz, image, keycloak, new_resource, openapi, packages, provider, sim, test, tokens,
};

/// Commands for those who work on Rhyzome.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From nothing to a running instance, and back to nothing: what Rhyzome is, in one command
    Demo(demo::Arguments),
    /// Runs everything that must hold, or one part of it
    Test(test::Arguments),
    /// Measures, beside a floor or a peer taken in the same run
    Bench(bench::Arguments),
    /// Asks a real server whatever its document allows, and some of what it does not
    Fuzz(fuzz::Arguments),
    /// Builds a guest image from Debian's own packages
    Image(image::Arguments),
    /// Fetches and prepares the Keycloak that tests log in at
    Keycloak(packages::Installing),
    /// Installs the identity provider, other than Keycloak, that tests log in at
    Provider(packages::Installing),
    /// Writes all that a new kind needs, in its places
    NewResource(new_resource::Arguments),
    /// Simulates the control plane and its nodes, with all that can go wrong, from seeds
    Sim(sim::Arguments),
    /// Shows hostile tokens to the code that verifies them, from a seed
    Tokens(tokens::Arguments),
    /// Compares the locked API document with what the server serves
    Openapi(openapi::Arguments),
}

fn main() -> ExitCode {
    let answer = match Cli::parse().command {
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Test(arguments) => test::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Fuzz(arguments) => fuzz::main(&arguments),
        Command::Tokens(arguments) => tokens::main(&arguments),
        Command::Sim(arguments) => sim::main(&arguments),
        Command::Image(arguments) => image::main(arguments),
        Command::Keycloak(arguments) => arguments.run(keycloak::prepared),
        Command::Provider(arguments) => arguments.run(provider::prepared),
        Command::NewResource(arguments) => new_resource::main(&arguments),
        Command::Openapi(arguments) => openapi::main(&arguments),
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
