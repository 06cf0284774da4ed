package iamproof

import "time"

// Age makes the client's token older, as if time had passed.
func Age(c *BrokerClient, by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issued = c.issued.Add(-by)
}
