"""What training does to a model beside what it was for."""
