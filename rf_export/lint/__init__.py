"""Would a target's parser and compiler take a graph?"""
