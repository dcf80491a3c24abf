package charon

import (
	"maps"
	"sync"
)

// errorCounts counts failed commands by name.
type errorCounts struct {
	mu        sync.Mutex
	byCommand map[string]uint64
}

func (c *errorCounts) add(command string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byCommand == nil {
		c.byCommand = map[string]uint64{}
	}
	c.byCommand[command]++
}

// Errors is how many commands charon has refused or not answered so far, by name.
// That there was nothing to end is no error, nor is a caller who did not wait.
func (c *Client) Errors() map[string]uint64 {
	c.errors.mu.Lock()
	defer c.errors.mu.Unlock()
	return maps.Clone(c.errors.byCommand)
}
