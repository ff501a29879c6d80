//! Whole clusters of real processes under real block clients and real kills.

#[path = "../cli/run.rs"]
mod binary;
mod catchup;
mod crash;
mod demo;
mod deposed;
mod durability;
mod factors;
mod fencing;
mod fio;
mod full;
mod golden;
mod image;
mod limited;
mod markdown;
mod mounted;
mod observe;
mod operations;
mod outage;
mod overload;
mod readme;
mod refusal;
mod repair;
mod restore;
mod scene;
mod sharing;
mod shell;
mod space;
mod testing;
mod tool;
