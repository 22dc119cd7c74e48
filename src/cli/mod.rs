//! What the subcommands share: arguments, exit codes, messages.

mod classify;
mod completions;
mod evaluate;
mod model;
mod progress;
mod table;
mod train;

use clap::{Parser, Subcommand};
use lyhord::ErrorKind;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// Reads reports to Sweden's care inspectorate and says which risk areas each
/// concerns and how severe it is. Offline; a person decides.
#[derive(Parser)]
#[command(name = "lyhord", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 all done, 1 error, 2 wrong usage, 3 done but some rows were left \
out (named on standard error), 130 interrupted.";

#[derive(Subcommand)]
enum Command {
    Classify(classify::Args),
    Evaluate(evaluate::Args),
    Train(Box<train::Args>),
    Model(model::Args),
    Completions(completions::Args),
}

/// How a subcommand ended that met no error.
enum Exit {
    Done,
    WithRejects,
    Interrupted,
}

type Result<T = Exit> = std::result::Result<T, Box<dyn Error>>;

pub fn main() -> ExitCode {
    // The message of a panic could quote a report.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => message(format_args!("internal fault at {place}")),
        None => message(format_args!("internal fault")),
    }));
    let result = match Cli::parse().command {
        Command::Classify(args) => classify::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Train(args) => train::run(*args),
        Command::Model(args) => model::run(args),
        Command::Completions(args) => completions::run(args),
    };
    ExitCode::from(match result {
        Ok(Exit::Done) => 0,
        Ok(Exit::WithRejects) => 3,
        Ok(Exit::Interrupted) => 130,
        // Whoever reads the output has seen enough, as in `| head`.
        Err(error) if is_broken_pipe(&*error) => 0,
        Err(error) => {
            message(format_args!("error: {error}"));
            let error = error.downcast_ref::<lyhord::Error>();
            match error.map(lyhord::Error::kind) {
                Some(ErrorKind::InvalidOption) => 2,
                _ => 1,
            }
        }
    })
}

/// Writes a line to standard error. If that is closed nobody is told.
fn message(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "lyhord: {line}");
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::BrokenPipe;
        }
        next = error.source();
    }
    false
}
