//! RabbitMQ: jobs in, results and events out.
