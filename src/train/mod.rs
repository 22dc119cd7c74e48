//! Fine-tuning a model on labelled reports.

mod augment;
mod batch;
pub(crate) mod calibration;
mod checkpoint;
mod data;
mod kernels;
pub(crate) mod lexical;
mod loss;
pub(crate) mod metrics;
mod network;
mod ops;
mod options;
mod parameters;
mod pipeline;
mod trainer;

pub use calibration::TOP_RECALL;
pub use data::{Evidence, LabelledReport, Target, read_labelled};
pub use options::TrainOptions;
pub use pipeline::{TrainJob, train};
pub use trainer::{StepReport, TrainEvent};
