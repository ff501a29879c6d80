//! The store as a whole, on simulated ground, against models.

mod copying;
mod crash;
mod driver;
mod faults;
mod model;
mod real;
