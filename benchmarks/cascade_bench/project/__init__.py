"""How fast a network would be on a device that is not here: `cascade-bench project`.

devices     published peaks and bandwidths, with their sources: devices.toml
work        what a network's stages ask of a machine
predict     seconds from work, peaks and efficiency; exit rates that reach a rate
fit         efficiency from machines that were measured, and the error of predicting them
report      what was asked, as one record
tables, plot  what people see of it
"""
