//! `lyhord model`.

use super::{Exit, Result};
use lyhord::{Classifier, ClassifierOptions, HeadKind};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Look at a model
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Say what a model is and what it answers
    Info {
        /// The bundle's folder [default: the built-in model]
        dir: Option<PathBuf>,
    },
    /// Check every file of a model against its hash, and that it loads
    Verify {
        /// The bundle's folder [default: the built-in model]
        dir: Option<PathBuf>,
    },
}

pub fn run(args: Args) -> Result {
    let mut stdout = std::io::stdout().lock();
    match args.action {
        Action::Info { dir } => {
            let classifier = load(dir.as_deref(), &ClassifierOptions::new())?;
            let (model, taxonomy) = (classifier.model(), classifier.taxonomy());
            writeln!(stdout, "name      {}", model.name())?;
            writeln!(stdout, "version   {}", model.version())?;
            writeln!(stdout, "sha256    {}", model.sha256())?;
            writeln!(stdout, "taxonomy  {}", model.taxonomy())?;
            for head in taxonomy.heads() {
                let kind = match (head.kind(), head.labels()) {
                    (HeadKind::Binary, _) => "yes or no".to_owned(),
                    (_, labels) => {
                        let codes: Vec<&str> = labels.iter().map(|label| label.code()).collect();
                        codes.join(" ")
                    }
                };
                writeln!(stdout, "{}: {kind}", head.field())?;
            }
        }
        Action::Verify { dir } => {
            let classifier = load(dir.as_deref(), &ClassifierOptions::new())?;
            let model = classifier.model();
            writeln!(
                stdout,
                "{} {} is whole: {}",
                model.name(),
                model.version(),
                model.sha256()
            )?;
        }
    }
    Ok(Exit::Done)
}

/// Loads the bundle of a folder, or the built-in one.
pub fn load(dir: Option<&Path>, options: &ClassifierOptions) -> Result<Classifier> {
    match dir {
        Some(dir) => Ok(options.from_dir(dir)?),
        #[cfg(feature = "embedded")]
        None => Ok(options.embedded()?),
        #[cfg(not(feature = "embedded"))]
        None => Err("this program was built without a model: name a bundle's folder".into()),
    }
}
