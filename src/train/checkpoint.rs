//! The state of a run on disk, so that a killed run goes on where it was.

use super::parameters::Parameters;
use crate::error::{Error, ErrorKind, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Optimiser steps taken.
    pub(super) step: u64,
    /// Epochs finished.
    pub(super) epoch: u64,
    /// Training texts read in the current epoch.
    pub(super) position: usize,
    /// The best dev score so far and the epoch that gave it.
    pub(super) best: Option<(f64, u64)>,
    /// Tokens read, over all sessions.
    pub(super) tokens: u64,
    /// What the run was started with; another run's checkpoint is refused.
    pub(super) fingerprint: String,
}

const METADATA_KEY: &str = "progress";

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn parts(parameter: &super::parameters::Parameter) -> [(&'static str, &Vec<f32>); 4] {
    [
        ("value", &parameter.value),
        ("average", &parameter.average),
        ("first_moment", &parameter.moments[0]),
        ("second_moment", &parameter.moments[1]),
    ]
}

/// Writes a checkpoint beside `path` and renames it, so that a kill at any
/// moment leaves the former one whole.
pub(super) fn save(path: &Path, parameters: &Parameters, progress: &Progress) -> Result<()> {
    let mut data = Vec::new();
    for parameter in parameters.all.iter().filter(|p| p.is_trained()) {
        for (part, values) in parts(parameter) {
            data.push((
                format!("{part}/{}", parameter.name),
                parameter.shape.clone(),
                bytes(values),
            ));
        }
    }
    let views = data
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map_err(|error| damaged(path, &error.to_string()))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let json =
        serde_json::to_string(progress).map_err(|error| damaged(path, &error.to_string()))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
    let temporary = path.with_extension("tmp");
    safetensors::serialize_to_file(views, Some(metadata), &temporary)
        .map_err(|error| damaged(&temporary, &error.to_string()))?;
    std::fs::rename(&temporary, path).map_err(|error| Error::io(path, "write", error))
}

/// Reads a checkpoint into `parameters`; `None` when there is none.
pub(super) fn load(path: &Path, parameters: &mut Parameters) -> Result<Option<Progress>> {
    let data = match std::fs::read(path) {
        Ok(data) => data,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "read", error)),
    };
    let broken = |error: safetensors::SafeTensorError| damaged(path, &error.to_string());
    let (_, header) = SafeTensors::read_metadata(&data).map_err(broken)?;
    let tensors = SafeTensors::deserialize(&data).map_err(broken)?;
    let progress = header
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get(METADATA_KEY))
        .and_then(|json| serde_json::from_str(json).ok())
        .ok_or_else(|| damaged(path, "it does not say where the run stood"))?;
    for parameter in parameters.all.iter_mut().filter(|p| p.is_trained()) {
        let read = |part: &str, size: usize| -> Result<Vec<f32>> {
            let name = format!("{part}/{}", parameter.name);
            let values = floats(tensors.tensor(&name).map_err(broken)?.data());
            if values.len() != size {
                return Err(damaged(
                    path,
                    &format!("{name} has another size than the model"),
                ));
            }
            Ok(values)
        };
        let size = parameter.value.len();
        let (value, average) = (read("value", size)?, read("average", size)?);
        let moments = [read("first_moment", size)?, read("second_moment", size)?];
        (parameter.value, parameter.average, parameter.moments) = (value, average, moments);
    }
    parameters.refresh()?;
    Ok(Some(progress))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!(
            "the checkpoint {} cannot be used: {why}; delete it to start again",
            path.display()
        ),
    )
}
