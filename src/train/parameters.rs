//! Named weights with their optimiser state.

use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::HashMap;

/// A tensor's name, shape and values, row by row.
pub(crate) type NamedValues = (String, Vec<usize>, Vec<f32>);

/// Named tensors that a forward pass reads.
pub(crate) struct Values {
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Values {
    /// Tensors of given names, shapes and values.
    pub(crate) fn new(tensors: &[NamedValues], device: &Device) -> Result<Self> {
        let tensor = |(name, shape, values): &NamedValues| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), device)?;
            Ok((name.clone(), tensor))
        };
        Ok(Self {
            tensors: tensors.iter().map(tensor).collect::<Result<_>>()?,
            device: device.clone(),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Result<Tensor> {
        self.tensors.get(name).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidBundle,
                format!("the model has no tensor {name}"),
            )
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

/// One tensor of weights. The master copy is on the CPU in f32.
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) value: Vec<f32>,
    /// The exponential moving average of the values (Polyak and Juditsky 1992).
    pub(crate) average: Vec<f32>,
    /// First and second moment of the gradient; empty for fixed weights.
    pub(crate) moments: [Vec<f32>; 2],
    /// The learning rate as a share of its group's; 0 keeps the weights fixed.
    pub(crate) rate: f32,
    /// Whether it is one of the heads rather than of the encoder.
    pub(crate) is_head: bool,
}

impl Parameter {
    pub(crate) fn is_trained(&self) -> bool {
        self.rate > 0.0
    }

    /// Matrices decay; biases and layer norms do not.
    fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// All weights of a network, in a fixed order.
pub(crate) struct Parameters {
    pub(crate) all: Vec<Parameter>,
    vars: Vec<Option<Var>>,
    device: Device,
}

/// The settings of AdamW (Loshchilov and Hutter 2019) for one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamW {
    pub(crate) encoder_rate: f32,
    pub(crate) head_rate: f32,
    pub(crate) weight_decay: f32,
    /// Number of this step, from 1.
    pub(crate) step: u64,
    /// Decay of the average of the weights, per step.
    pub(crate) average_decay: f32,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPSILON: f32 = 1e-6;

impl Parameters {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            all: Vec::new(),
            vars: Vec::new(),
            device,
        }
    }

    fn add(&mut self, parameter: Parameter) -> Result<()> {
        let var = if parameter.is_trained() {
            let device = if parameter.is_head {
                &Device::Cpu
            } else {
                &self.device
            };
            Some(Var::from_slice(
                &parameter.value,
                parameter.shape.as_slice(),
                device,
            )?)
        } else {
            None
        };
        self.vars.push(var);
        self.all.push(parameter);
        Ok(())
    }

    pub(crate) fn add_encoder(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        value: Vec<f32>,
        rate: f32,
    ) -> Result<()> {
        let trained = if rate > 0.0 { value.len() } else { 0 };
        self.add(Parameter {
            name: name.to_owned(),
            shape,
            average: if trained > 0 {
                value.clone()
            } else {
                Vec::new()
            },
            moments: [vec![0.0; trained], vec![0.0; trained]],
            value,
            rate,
            is_head: false,
        })
    }

    pub(crate) fn add_head(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        value: Vec<f32>,
    ) -> Result<()> {
        let size = value.len();
        self.add(Parameter {
            name: name.to_owned(),
            shape,
            average: value.clone(),
            moments: [vec![0.0; size], vec![0.0; size]],
            value,
            rate: 1.0,
            is_head: true,
        })
    }

    fn collect(
        &self,
        tensor: impl Fn(&Parameter, Option<&Var>) -> Result<Tensor>,
    ) -> Result<Values> {
        let tensors = self
            .all
            .iter()
            .zip(&self.vars)
            .map(|(parameter, var)| Ok((parameter.name.clone(), tensor(parameter, var.as_ref())?)))
            .collect::<Result<_>>()?;
        Ok(Values {
            tensors,
            device: self.device.clone(),
        })
    }

    /// Tensors that gradients flow back to.
    pub(crate) fn trained(&self, fixed: &Values) -> Result<Values> {
        self.collect(|parameter, var| match var {
            Some(var) => Ok(var.as_tensor().clone()),
            None => fixed.get(&parameter.name),
        })
    }

    /// Tensors of the weights that stay as they are.
    pub(crate) fn fixed(&self) -> Result<Values> {
        let tensors = self
            .all
            .iter()
            .filter(|parameter| !parameter.is_trained())
            .map(|p| {
                let tensor = Tensor::from_slice(&p.value, p.shape.as_slice(), &self.device)?;
                Ok((p.name.clone(), tensor))
            })
            .collect::<Result<_>>()?;
        Ok(Values {
            tensors,
            device: self.device.clone(),
        })
    }

    /// Tensors of the averaged weights, for evaluation.
    pub(crate) fn averaged(&self, fixed: &Values) -> Result<Values> {
        self.collect(|parameter, _| {
            if !parameter.is_trained() {
                return fixed.get(&parameter.name);
            }
            let device = if parameter.is_head {
                &Device::Cpu
            } else {
                &self.device
            };
            Ok(Tensor::from_slice(
                &parameter.average,
                parameter.shape.as_slice(),
                device,
            )?)
        })
    }

    /// The gradient of every parameter in `grads`, as `[parameter][element]`;
    /// empty where there is none.
    pub(crate) fn gradients(
        &self,
        grads: &candle_core::backprop::GradStore,
    ) -> Result<Vec<Vec<f32>>> {
        self.vars
            .iter()
            .map(
                |var| match var.as_ref().and_then(|var| grads.get(var.as_tensor())) {
                    Some(grad) => Ok(grad.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?),
                    None => Ok(Vec::new()),
                },
            )
            .collect()
    }

    /// One step of AdamW on the sum of `shards`, clipped to a global norm.
    /// Gives back the norm before clipping.
    pub(crate) fn step(
        &mut self,
        mut shards: Vec<Vec<Vec<f32>>>,
        clip: f32,
        adam: AdamW,
    ) -> Result<f32> {
        let mut gradients = shards.remove(0);
        for shard in shards {
            gradients.par_iter_mut().zip(shard).for_each(|(sum, part)| {
                if sum.is_empty() {
                    *sum = part;
                } else {
                    for (sum, part) in sum.iter_mut().zip(part) {
                        *sum += part;
                    }
                }
            });
        }
        // Norms are summed in parameter order, so that a run can be repeated.
        let squares: Vec<f64> = gradients
            .par_iter()
            .map(|g| {
                g.chunks(1024)
                    .map(|c| f64::from(c.iter().map(|x| x * x).sum::<f32>()))
                    .sum()
            })
            .collect();
        let norm = squares.iter().sum::<f64>().sqrt() as f32;
        let factor = if norm > clip { clip / norm } else { 1.0 };
        let correction1 = 1.0 - BETA1.powi(adam.step.min(100_000) as i32);
        let correction2 = 1.0 - BETA2.powi(adam.step.min(100_000) as i32);
        // Early on the average would remember the random start for too long.
        let keep = adam
            .average_decay
            .min((1.0 + adam.step as f32) / (10.0 + adam.step as f32));
        self.all
            .par_iter_mut()
            .zip(&gradients)
            .for_each(|(parameter, gradient)| {
                if !parameter.is_trained() {
                    return;
                }
                let group = if parameter.is_head {
                    adam.head_rate
                } else {
                    adam.encoder_rate
                };
                let rate = group * parameter.rate;
                let decay = if parameter.decays() {
                    rate * adam.weight_decay
                } else {
                    0.0
                };
                let Parameter {
                    value,
                    average,
                    moments: [first, second],
                    ..
                } = parameter;
                let state = first
                    .iter_mut()
                    .zip(second.iter_mut())
                    .zip(average.iter_mut());
                for ((value, gradient), ((m, v), average)) in
                    value.iter_mut().zip(gradient).zip(state)
                {
                    let gradient = gradient * factor;
                    *m = BETA1 * *m + (1.0 - BETA1) * gradient;
                    *v = BETA2 * *v + (1.0 - BETA2) * gradient * gradient;
                    let update = (*m / correction1) / ((*v / correction2).sqrt() + EPSILON);
                    *value -= rate * update + decay * *value;
                    *average = keep * *average + (1.0 - keep) * *value;
                }
            });
        self.refresh()?;
        Ok(norm)
    }

    /// Copies the master weights to the tensors that the network reads.
    pub(crate) fn refresh(&self) -> Result<()> {
        for (parameter, var) in self.all.iter().zip(&self.vars) {
            if let Some(var) = var {
                let tensor =
                    Tensor::from_slice(&parameter.value, parameter.shape.as_slice(), var.device())?;
                var.set(&tensor)?;
            }
        }
        Ok(())
    }
}
