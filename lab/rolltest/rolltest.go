// Package rolltest measures what clients lose while an ECS service in the mesh is rolled over: it holds nothing but a
// test, apart from package e2e because it needs minutes of a machine that does nothing else.
//
// It runs when ISTHMUS_ROLL=1, with the programs of $ISTHMUS_BIN, by default the repository's bin/. Other variables:
//
//	ISTHMUS_ROLL_RATE=200   requests a second
//	ISTHMUS_ROLL_LAME_DUCK=5s how long the application serves on after SIGTERM
//	ISTHMUS_ROLL_DIR=PATH   use the lab of this state directory and keep it up
package rolltest
