"""etcd: client with deadlines and failover, leader election, transactions that only the leader can make."""
