//! `lyhord completions`.

use super::{Cli, Exit, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

/// Write a shell's completion script to standard output
#[derive(clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

pub fn run(args: Args) -> Result {
    // Through memory: the generator would panic on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lyhord", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}
