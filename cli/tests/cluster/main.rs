//! Whole clusters of real processes under real block clients and real kills.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // An edge.

mod crash;
mod demo;
mod fio;
mod image;
mod mounted;
mod observe;
mod repair;
mod tool;
