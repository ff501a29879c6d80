//! The protocol, tested against a small world: three copies, their disks, the links between them and
//! the metadata cluster's record.

mod catchup;
mod histories;
mod model;
mod rules;
mod space;
mod store;
mod together;
mod walk;
mod world;
