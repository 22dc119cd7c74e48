//! Named tensors out of a safetensors file.

use crate::error::{Error, ErrorKind, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Values converted at a time, so that the vectorised conversion of `half` can
/// be used on bytes of any alignment.
const CHUNK: usize = 4096;

/// The tensors of one safetensors file, with a record of which were read.
pub(crate) struct Weights<'a> {
    tensors: SafeTensors<'a>,
    /// What stands before `embeddings.` in the names, as in `roberta.`.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| {
            invalid(format!(
                "cannot be read as safetensors of {} bytes; it is truncated or damaged",
                bytes.len()
            ))
            .with_source(error)
        })?;
        let anchor = "embeddings.word_embeddings.weight";
        let prefix = tensors
            .names()
            .iter()
            .filter_map(|name| name.strip_suffix(anchor))
            // The file gives names in no order of its own.
            .min_by_key(|prefix| (prefix.len(), *prefix))
            .ok_or_else(|| invalid(format!("has no tensor {anchor}")))?
            .to_owned();
        Ok(Self {
            tensors,
            prefix,
            read: RefCell::default(),
        })
    }

    /// Names that no caller has read.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let mut names: Vec<_> = self
            .tensors
            .names()
            .into_iter()
            .filter(|name| !read.contains(*name))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// A tensor as it is stored, its shape checked.
    pub fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        let (full, tensor) = self.find(name)?;
        if tensor.shape() != shape {
            return Err(invalid(format!(
                "has {full} in the shape {:?}; config.json and taxonomy.toml ask for {shape:?}",
                tensor.shape()
            )));
        }
        self.read.borrow_mut().insert(full);
        Ok(tensor)
    }

    /// The rows of a matrix whose number of columns is known.
    pub fn rows(&self, name: &str) -> Result<usize> {
        let (_, tensor) = self.find(name)?;
        Ok(tensor.shape().first().copied().unwrap_or(0))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<(String, TensorView<'a>)> {
        let prefixed = format!("{}{name}", self.prefix);
        for full in [prefixed, name.to_owned()] {
            if let Ok(tensor) = self.tensors.tensor(&full) {
                return Ok((full, tensor));
            }
        }
        Err(invalid(format!("has no tensor {name}")))
    }

    /// A tensor in f32, its shape checked; f16 and bf16 are widened.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.view(name, shape)?;
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect()),
            Dtype::F16 => Ok(widen(bytes, f16::from_le_bytes, |half, out| {
                half.convert_to_f32_slice(out)
            })),
            Dtype::BF16 => Ok(widen(bytes, bf16::from_le_bytes, |half, out| {
                half.convert_to_f32_slice(out)
            })),
            other => Err(wrong_type(name, other)),
        }
    }

    /// A lookup table of `rows` rows of `columns` values. It stays in f16 if it
    /// is stored so, since only few of its rows are read for each text.
    pub fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Table> {
        let tensor = self.view(name, &[rows, columns])?;
        let values = match tensor.dtype() {
            Dtype::F16 => Values::F16(
                tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f16::from_le_bytes(*bytes))
                    .collect(),
            ),
            _ => Values::F32(self.f32(name, &[rows, columns])?),
        };
        Ok(Table { values, columns })
    }
}

fn widen<T: Default + Copy>(
    bytes: &[u8],
    read: impl Fn([u8; 2]) -> T,
    convert: impl Fn(&[T], &mut [f32]),
) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0;
    let mut values = vec![0.0; halves.len()];
    let mut buffer = [T::default(); CHUNK];
    for (halves, values) in halves.chunks(CHUNK).zip(values.chunks_mut(CHUNK)) {
        let buffer = &mut buffer[..halves.len()];
        for (slot, half) in buffer.iter_mut().zip(halves) {
            *slot = read(*half);
        }
        convert(buffer, values);
    }
    values
}

/// Rows of equal width, found by number.
pub(crate) struct Table {
    values: Values,
    columns: usize,
}

enum Values {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Table {
    /// Writes a row to `out`, as long as the table is wide. `None` when there
    /// is no such row.
    pub fn read(&self, row: usize, out: &mut [f32]) -> Option<()> {
        let range = row.checked_mul(self.columns)?..(row + 1).checked_mul(self.columns)?;
        match &self.values {
            Values::F16(values) => values.get(range)?.convert_to_f32_slice(out),
            Values::F32(values) => out.copy_from_slice(values.get(range)?),
        }
        Some(())
    }
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidBundle,
        format!("model.safetensors {message}"),
    )
}

fn wrong_type(name: &str, dtype: Dtype) -> Error {
    invalid(format!(
        "has {name} in the type {dtype:?}; F32, F16 and BF16 can be read"
    ))
}
