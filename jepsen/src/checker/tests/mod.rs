//! The checkers against simulated registers, sound and broken, and against a search of all orders.

mod brute;
mod named;
mod planted;
mod simulated;
