//! The networks. Parameter names equal the checkpoint keys.

pub mod config;
