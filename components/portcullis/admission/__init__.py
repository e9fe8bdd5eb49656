"""Admission: judge the whole chain and sign what may be deployed."""
